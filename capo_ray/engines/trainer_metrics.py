"""Metrics of an update: added up on a rank, then over all ranks, and divided once.

Sums travel, never means: a mean of means weighs a rank with little to do like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from capo_ray.learn.loss import Loss, MetricNames
from capo_ray.types import Metrics


class Sums:
    """What one rank has seen of an update, until `reduce`."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        self._tokens += loss.tokens
        _add(self._sums, loss.sums)
        _add(self._totals, loss.totals)
        for name, value in loss.maxima.items():
            self._maxima[name] = torch.maximum(self._maxima.get(name, value), value)

    def reduce(self, names: MetricNames, num_steps: int, device: torch.device) -> Metrics:
        """Means over tokens, totals per optimizer step, and largest values, of all ranks together.

        `names` says which metrics there are: a rank may have seen nothing but empty micro-batches.
        """
        zero = torch.zeros((), dtype=torch.float64, device=device)
        tokens = torch.full_like(zero, self._tokens)
        sums = [self._sums.get(name, zero) for name in names.sums]
        totals = [self._totals.get(name, zero) for name in names.totals]
        added = torch.stack([tokens, *sums, *totals])
        largest = torch.stack([zero, *(self._maxima.get(name, zero - math.inf).double() for name in names.maxima)])
        dist.all_reduce(added)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        count, *values = added.tolist()
        means = {name: value / max(count, 1) for name, value in zip(names.sums, values, strict=False)}
        per_step = {
            name: value / max(num_steps, 1) for name, value in zip(names.totals, values[len(sums) :], strict=True)
        }
        maxima = zip(names.maxima, largest.tolist()[1:], strict=True)
        return {"tokens": count, **means, **per_step, **{name: value for name, value in maxima if value > -math.inf}}


def _add(into: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name] = into[name] + value.double() if name in into else value.double()
