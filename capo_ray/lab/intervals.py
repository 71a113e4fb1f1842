"""Means with 95 % intervals, from a handful of seeds.

Student's t, since a bootstrap over five values covers far less than it says. Differences between two arms are taken
seed by seed. Leaves out what is compared (see `lab.report`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev

# 97.5 % quantiles of Student's t by degrees of freedom; beyond them the normal one is within 2 %.
_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and half the width of its 95 % interval; infinite for one value."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float]) -> Interval:
    """Raises ValueError without values."""
    if not values:
        raise ValueError("an interval needs a value at least")
    count = len(values)
    if count == 1:
        return Interval(mean=values[0], half=inf, count=1)
    quantile = _QUANTILES[count - 2] if count - 2 < len(_QUANTILES) else _NORMAL
    return Interval(mean=fmean(values), half=quantile * stdev(values) / sqrt(count), count=count)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The mean of ours less theirs over the seeds that both have; None where there is no such seed."""
    seeds = sorted(ours.keys() & theirs.keys())
    return interval([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None
