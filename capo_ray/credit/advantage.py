"""From the rewards of one prompt's responses to token advantages (docs/algorithm.md section 6).

An algorithm is a normaliser and whether step penalties enter the token rewards that it sees. A group without any
difference has advantage 0, exactly. Sums are correctly rounded, so the order of a group changes nothing. An algorithm
that normalises over the whole batch leaves that to whoever sees the batch (see `learn.batch`); here its rewards stay as
they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import fsum, sqrt
from typing import Literal

from capo_ray import extension

Advantage = Literal[
    "capo", "capo_mean", "capo_channels", "capo_batch", "grpo", "grpo_sample", "dr_grpo", "rloo", "reinforce_pp"
]
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
    return _pooled(token_rewards, divide=True)


def pooled_centred(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """CAPO without the division: every token against the mean of all tokens of all members."""
    return _pooled(token_rewards, divide=False)


def _pooled(rows: Rows, *, divide: bool) -> list[tuple[float, ...]]:
    values = Counter(chain.from_iterable(rows))
    if not values:
        return [() for _ in rows]
    mean, std = _mean_and_std(values)
    scale = std + EPSILON if divide else 1.0
    advantages = {value: (value - mean) / scale for value in values}
    return [tuple([advantages[reward] for reward in row]) for row in rows]


def channels(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """Outcomes as GRPO does and step penalties over all tokens as CAPO does, each by itself, then added: after GDPO
    (arXiv 2601.05242), without its weights and its normalising over the batch.

    Normalising a channel takes its weight away, so that C and P play no part unless they are 0.
    """
    outcome = standard_scores(token_rewards, outcome_rewards)
    # Rounded, because equal penalties must stay equal: 1.1 - 2.1 and 0 - 1 differ in the last bit.
    process = [
        [round(reward - whole, 12) for reward in row] for row, whole in zip(token_rewards, outcome_rewards, strict=True)
    ]
    return [
        tuple([a + b for a, b in zip(*rows, strict=True)])
        for rows in zip(outcome, _pooled(process, divide=True), strict=True)
    ]


def as_they_are(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """REINFORCE++: nothing is compared within the group."""
    return [tuple(row) for row in token_rewards]


def standard_scores(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """GRPO: every response against the mean and population std of the responses."""
    mean, std = _mean_and_std(Counter(outcome_rewards))
    return _spread([(reward - mean) / (std + EPSILON) for reward in outcome_rewards], token_rewards)


def sample_scores(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """GRPO as most libraries have it: with the deviation of a sample, over n - 1. Alone a response has none."""
    mean, std = _mean_and_std(Counter(outcome_rewards))
    n = len(outcome_rewards)
    std *= sqrt(n / max(n - 1, 1))
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
    over_batch: bool = False
    """Whether the tokens of the whole batch are standardised together, after `normalise`."""


ALGORITHMS: dict[Advantage, Algorithm] = {
    "capo": Algorithm(pooled_tokens, step_penalties=True),
    "capo_mean": Algorithm(pooled_centred, step_penalties=True),
    "capo_channels": Algorithm(channels, step_penalties=True),
    "capo_batch": Algorithm(as_they_are, step_penalties=True, over_batch=True),
    "grpo": Algorithm(standard_scores, step_penalties=False),
    "grpo_sample": Algorithm(sample_scores, step_penalties=False),
    "dr_grpo": Algorithm(centred, step_penalties=False),
    "rloo": Algorithm(leave_one_out, step_penalties=False),
    "reinforce_pp": Algorithm(as_they_are, step_penalties=False, over_batch=True),
}


def algorithm_of(name: str) -> Algorithm:
    """One of `ALGORITHMS`, or one of a user's, by `module:name`. Raises ValueError."""
    for known, algorithm in ALGORITHMS.items():
        if name == known:
            return algorithm
    if not extension.is_own(name):
        raise ValueError(f"{name!r} is none of {', '.join(ALGORITHMS)}, and no module:name of your own")
    own: Algorithm = extension.load(
        name, lambda found: isinstance(found, Algorithm), is_a="a capo_ray.credit.advantage.Algorithm"
    )
    return own
