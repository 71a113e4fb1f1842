"""From the rewards of one prompt's responses to token advantages (CAPO.md section 6).

An algorithm is a normaliser and whether step penalties enter the token rewards that it sees. A group without any
difference has advantage 0, exactly. Sums are correctly rounded, so the order of a group changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import fsum, sqrt
from typing import Literal

Advantage = Literal["capo", "grpo", "dr_grpo", "rloo"]
Rows = Sequence[Sequence[float]]
"""[member][T]"""

EPSILON = 1e-6


def _mean_and_std(values: Counter[float]) -> tuple[float, float]:
    """Mean and population standard deviation of values that occur so many times; std is 0 only when all are equal."""
    count = values.total()
    mean = fsum(value * times for value, times in values.items()) / count
    if len(values) == 1:
        (mean,) = values
    return mean, sqrt(fsum(times * (value - mean) ** 2 for value, times in values.items()) / count)


def pooled_tokens(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """CAPO, Eq. 2: every token against the mean and std of all tokens of all members."""
    values = Counter(chain.from_iterable(token_rewards))
    if not values:
        return [() for _ in token_rewards]
    mean, std = _mean_and_std(values)
    advantages = {value: (value - mean) / (std + EPSILON) for value in values}
    return [tuple([advantages[reward] for reward in row]) for row in token_rewards]


def standard_scores(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """GRPO: every response against the mean and std of the responses."""
    mean, std = _mean_and_std(Counter(outcome_rewards))
    return _spread([(reward - mean) / (std + EPSILON) for reward in outcome_rewards], token_rewards)


def centred(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """Dr.GRPO: every response against the mean of the responses."""
    mean, _ = _mean_and_std(Counter(outcome_rewards))
    return _spread([reward - mean for reward in outcome_rewards], token_rewards)


def leave_one_out(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """RLOO: every response against the mean of the others; alone it has nothing to be compared with."""
    others = len(outcome_rewards) - 1
    mean, _ = _mean_and_std(Counter(outcome_rewards))
    return _spread([(reward - mean) * (others + 1) / max(others, 1) for reward in outcome_rewards], token_rewards)


def _spread(advantages: Sequence[float], rows: Rows) -> list[tuple[float, ...]]:
    return [(advantage,) * len(row) for advantage, row in zip(advantages, rows, strict=True)]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How rewards become advantages."""

    normalise: Callable[[Rows, Sequence[float]], list[tuple[float, ...]]]
    """(token rewards, outcome rewards), at least one member, to advantages of the same shape."""
    step_penalties: bool
    """Whether flagged steps pay; without, nobody needs to be judged."""


ALGORITHMS: dict[Advantage, Algorithm] = {
    "capo": Algorithm(pooled_tokens, step_penalties=True),
    "grpo": Algorithm(standard_scores, step_penalties=False),
    "dr_grpo": Algorithm(centred, step_penalties=False),
    "rloo": Algorithm(leave_one_out, step_penalties=False),
}
