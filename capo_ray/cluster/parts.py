"""What a crew is made of, and its numbers.

Leaves out what it does (crew) and how the parts are made (training.build).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.cluster.ahead import Groups
from capo_ray.cluster.trainer_group import TrainerGroup
from capo_ray.cluster.turns import Turns
from capo_ray.critics.budget import CriticBudget
from capo_ray.critics.canaries import Canary
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.records.tracking import Tracker
from capo_ray.types import Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewSettings:
    seed: int
    responses_per_prompt: int
    sampling: Sampling
    max_dropped_share: float
    max_failed_share: float = 1.0
    failure_prompts: int = 16
    """Of critiques, and the prompts over which it is taken; see critics.failures."""
    evaluation_responses: int = 1
    """To each held-out problem."""
    refills: int
    """How often groups in which no token has an advantage are replaced by others."""
    samples_per_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewParts:
    workers: Sequence[Any]
    """Rollout actors."""
    critics: Sequence[Any]
    """Actors that judge, for their totals."""
    aggregators: Sequence[Any]
    trainers: TrainerGroup
    score_ahead: Callable[[Groups], Awaitable[None]] | None = None
    """Has the trainer score responses while critics judge them; None where that gains nothing."""
    tracker: Tracker
    checkpoints: Checkpoints
    prompts_for: Callable[[int, int], Sequence[Prompt]]
    """(step, attempt) -> the prompts of its batch; a pure function."""
    canaries_for: Callable[[int, Sequence[Prompt]], Sequence[Canary]]
    """(step, its prompts) -> the canaries that are judged beside the responses; a pure function."""
    held_out: Sequence[Prompt]
    budget: CriticBudget | None
    """Of critic tokens; None: every response is judged as soon as it is finished."""
    run_dir: Path
    turns: Turns


def spread(total: int, parts: int) -> list[int]:
    """`total` in `parts` numbers as equal as can be."""
    return [total // parts + (part < total % parts) for part in range(parts)]
