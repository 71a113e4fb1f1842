"""Token rewards (CAPO.md section 5, Eq. 1): the outcome on every token, less the penalty on those of flagged steps."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.types import Step


def token_rewards(
    num_tokens: int, steps: Sequence[Step], weights: Sequence[float], *, outcome_reward: float, process_weight: float
) -> tuple[float, ...]:
    """One reward per response token; `weights` says per step which share of `process_weight` its tokens pay."""
    rewards = [outcome_reward] * num_tokens
    for step, weight in zip(steps, weights, strict=True):
        if weight:
            first, end = step.tokens
            rewards[first:end] = [outcome_reward - process_weight * weight] * (end - first)
    return tuple(rewards)
