"""Token rewards (docs/algorithm.md section 5, Eq. 1): the outcome on every token, less the penalty on flagged steps.

Leaves out: which steps pay what (see `credit.penalty`) and how rewards become advantages (see `credit.advantage`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capo_ray.types import Answer, Critique, Rollout, Step

OutcomeSource = Literal["verifier", "critic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a response as a whole is paid for, beside its answer. What has no word here is of `reward` in
    docs/configuration.md."""

    source: OutcomeSource = "verifier"
    """`reward.outcome`: who says whether the answer is right."""
    format_weight: float = 0.0
    format_pattern: re.Pattern[str] | None = None
    overlong_tokens: int = 0
    """The punishment grows linearly over them, up to `overlong_weight` (DAPO, arXiv 2503.14476, Eq. 13)."""
    overlong_weight: float = 1.0
    max_response_tokens: int = 0
    """The limit that `overlong_tokens` stand before."""


ANSWER_ONLY = Outcome()


def outcome_reward(
    rollout: Rollout, answer: Answer, critiques: Sequence[Critique], *, weight: float, outcome: Outcome
) -> float | None:
    """The reward that every token of a response gets, `weight` is C; None where no critique says what is needed."""
    right: float
    if outcome.source == "verifier":
        right = float(answer == "correct")
    else:
        said = [c.says_correct for c in critiques if c.outcome == "ok" and c.says_correct is not None]
        if not said:
            return None
        right = sum(said) / len(said)
    reward = weight * right
    if outcome.format_weight and outcome.format_pattern and outcome.format_pattern.search(rollout.text):
        reward += outcome.format_weight
    if outcome.overlong_tokens:
        excess = len(rollout.token_ids) - (outcome.max_response_tokens - outcome.overlong_tokens)
        reward -= outcome.overlong_weight * min(max(excess / outcome.overlong_tokens, 0.0), 1.0)
    return reward


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
