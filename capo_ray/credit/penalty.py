"""What each step pays for, given which steps are wrong: the error set, then the return (docs/algorithm.md, 5).

Both take and give one weight per step, the share of the process weight that its tokens pay, so that any pair of them
works with any vote. Leaves out: which steps are wrong (see `credit.vote`) and what tokens pay (see `credit.reward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

ErrorSet = Literal["all", "from_first", "first"]
Returns = Literal["none", "suffix_sum", "suffix_min"]
Weights = Sequence[float]
"""[num_steps]"""


def _from_first(weights: Weights) -> Weights:
    """From the first wrong step on every step is as wrong as the worst so far."""
    return list(accumulate(weights, max))


def _first(weights: Weights) -> Weights:
    at = next((step for step, weight in enumerate(weights) if weight), len(weights))
    return [weight if step == at else 0.0 for step, weight in enumerate(weights)]


def _suffix(weights: Weights, combine: Callable[[float, float], float]) -> Weights:
    return list(accumulate(reversed(weights), combine))[::-1]


ERROR_SETS: dict[ErrorSet, Callable[[Weights], Weights]] = {
    "all": lambda weights: weights,
    "from_first": _from_first,
    "first": _first,
}
"""`all` is CAPO's. `first`, after VPPO (arXiv 2601.18984): what follows the first error is neither right nor wrong."""

RETURNS: dict[Returns, Callable[[Weights], Weights]] = {
    "none": lambda weights: weights,
    "suffix_sum": lambda weights: _suffix(weights, lambda later, here: later + here),
    "suffix_min": lambda weights: _suffix(weights, max),
}
"""`none` is CAPO's. A step's return is the sum of its own reward and those after it, or the least of them (PURE, arXiv
2504.15275); the least reward is the largest penalty."""


def penalties(weights: Weights, error_set: ErrorSet, returns: Returns) -> tuple[float, ...]:
    """[num_steps] the share of the process weight that each step pays; above 1 only under `suffix_sum`."""
    return tuple(RETURNS[returns](ERROR_SETS[error_set](weights)))
