"""Algorithms that nobody would train with, to take an effect apart. Leaves out those that people compare (credit)."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.credit.advantage import Algorithm, Rows, pooled_tokens


def pooled_where_outcomes_differ(token_rewards: Rows, outcome_rewards: Sequence[float]) -> list[tuple[float, ...]]:
    """CAPO, but a group whose outcomes are all equal teaches nothing, as under GRPO. [member][T] to the same."""
    if len(set(outcome_rewards)) < 2:
        return [(0.0,) * len(row) for row in token_rewards]
    return pooled_tokens(token_rewards, outcome_rewards)


MIXED_ONLY = Algorithm(pooled_where_outcomes_differ, step_penalties=True)
