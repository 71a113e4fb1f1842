"""What samples of a problem are worth: avg@k, pass@k and maj@k, and bootstrap intervals over problems. Pure functions.

n samples of one problem, c of them right, give an estimate for every k <= n. Leaves out what is right and which
answers are equal (evaluate.grading).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

DRAWS = 2000
"""Bootstrap samples of an interval."""
LEVEL = 0.95

T = TypeVar("T")


def avg_at_k(correct: Sequence[bool], k: int) -> float:
    """Share of the first k samples that are right."""
    return fmean(_first(correct, k))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that one at least of k samples is right, without bias from n >= k samples of which c are:
    1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be in 1..{num_samples}, the number of samples, got {k}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def maj_at_k(answers: Sequence[Hashable | None], gold: Hashable, k: int) -> float:
    """Whether the answer that most of the first k samples give is `gold`; of equally frequent ones the first given
    counts. None gives no answer and has no vote."""
    votes = Counter(answer for answer in _first(answers, k) if answer is not None)
    return float(bool(votes) and votes.most_common(1)[0][0] == gold)  # equal counts stay in the order they came in


def _first(samples: Sequence[T], k: int) -> Sequence[T]:
    if not 1 <= k <= len(samples):
        raise ValueError(f"k must be in 1..{len(samples)}, the number of samples, got {k}")
    return samples[:k]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    count: int
    """Problems."""


def estimate(values: Sequence[float], seed: int) -> Estimate:
    """The mean of one value per problem; problems are drawn again, with replacement. Raises ValueError without any."""
    return _summed([values], seed)


def mean_of(benchmarks: Sequence[Sequence[float]], seed: int) -> Estimate:
    """The mean of benchmarks' means, each benchmark counting the same whatever its size."""
    return _summed(benchmarks, seed)


def _summed(benchmarks: Sequence[Sequence[float]], seed: int) -> Estimate:
    if not benchmarks or not all(benchmarks):
        raise ValueError("an estimate needs a problem at least")
    import numpy as np

    rng = np.random.default_rng(seed)
    draws = np.mean([_drawn(values, rng) for values in benchmarks], axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(
        value=fmean(fmean(values) for values in benchmarks),
        low=float(low),
        high=float(high),
        count=sum(len(values) for values in benchmarks),
    )


def _drawn(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Means of DRAWS samples of as many values, [DRAWS]. There are few different values, so how often each is drawn is
    drawn instead of every one."""
    import numpy as np

    different, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=DRAWS)
    means: np.ndarray = drawn @ different / len(values)
    return means
