"""Every field of a run, block by block. Leaves out the rules between blocks (see `rules`), by which a Config is made of
them (see `run`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from capo_ray.config.block import Block, setting
from capo_ray.config.blocks import Cluster, Data, Rollout, Tracking, Trainer
from capo_ray.config.critic import Critic
from capo_ray.config.method import Algorithm, Reward
from capo_ray.config.model import Model


class Fields(Block):
    """One run, field by field."""

    name: str = setting("name of the run, and of its directory", "run", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    run_dir: str | None = setting("null: runs/NAME-TIME below the working directory", None)
    resume: bool = setting("continue the run in `run_dir` from its last checkpoint", False)
    dry_run: bool = setting(
        "print the resolved configuration, the placement plan and what a critic would read, then stop", False
    )
    seed: int = setting("every random choice of the run is a function of it", 0, unit="none", ge=0)
    steps: int = setting("rollout batches to train on", unit="steps", gt=0)
    epochs: float | None = setting(
        "passes over the problems, in place of `steps`; as many steps as that takes", None, unit="passes", gt=0
    )
    prompts_per_step: int = setting("problems of one rollout batch", unit="prompts", gt=0)
    responses_per_prompt: int = setting("n: the size of a group", unit="responses", source="CAPO: 16", gt=1)
    checkpoint_every: int = setting("steps between checkpoints; 0: as `checkpoint_minutes` says", 0, unit="steps", ge=0)
    checkpoint_minutes: float = setting(
        "a checkpoint after the step at which the last one is this old, whatever `checkpoint_every` says; 0: not",
        30.0,
        unit="minutes",
        ge=0,
    )
    keep_checkpoints: int = setting("newest checkpoints that are kept", 2, unit="checkpoints", ge=1)
    keep_every: int = setting("checkpoints of steps that are multiples of it stay too; 0: none", 0, unit="steps", ge=0)
    keep_best: str | None = setting(
        "the checkpoint with the highest of this metric stays too: of its evaluation, or else the mean over the steps "
        "since the last checkpoint; null: none",
        "outcome/accuracy",
    )
    export_every: int = setting(
        "steps between models written to `exports/` of the run directory, which stay; 0: none. `policy/` is written at "
        "the end",
        0,
        unit="steps",
        ge=0,
    )
    stop_after_broken_steps: int = setting(
        "more steps in a row than this with a broken policy (no answer right any more, every response cut off, no "
        "credit, a gradient or ratio out of all proportion) end the run; 0: it only warns",
        20,
        unit="steps",
        ge=0,
    )
    stop_within_s: float = setting(
        "a run that is told to end (Ctrl-C, SIGTERM) may take this long for a last checkpoint: less than who ends it "
        "waits before it kills (Slurm's warning: 300 s ahead)",
        240.0,
        unit="s",
        gt=0,
    )
    evaluate_every: int = setting(
        "steps between evaluations; 0: only before the first and at the end", 0, unit="steps", ge=0
    )
    max_dropped_share: float = setting(
        "dropped groups of a step above this share stop the run", 0.5, unit="share", gt=0, le=1
    )

    policy: Model = setting("the model that is trained")
    data: Data = setting("see below")
    rollout: Rollout = setting("see below")
    critic: Critic | None = setting("null: no critiques, outcome rewards only", None)
    reward: Reward = setting("see below", Reward())
    algorithm: Algorithm = setting("see below", Algorithm())
    trainer: Trainer = setting("see below")
    cluster: Cluster = setting("see below", Cluster())
    tracking: Tracking = setting("see below", Tracking())

    @property
    def checkpoints_at_once(self) -> int:
        """How many stand on the disk at most: those that are kept, and the one that is being written."""
        of_steps = self.steps // self.keep_every if self.keep_every else 0
        return self.keep_checkpoints + (self.keep_best is not None) + of_steps + 1

    @property
    def models_written(self) -> int:
        """How many plain models stand on the disk at the end: `exports/`, and the policy."""
        return (self.steps // self.export_every if self.export_every else 0) + 1

    @model_validator(mode="before")
    @classmethod
    def _steps_of_epochs(cls, given: Any) -> Any:
        """Until the problems are counted, a run of `epochs` alone has one step."""
        alone = isinstance(given, Mapping) and given.get("epochs") is not None and "steps" not in given
        return {**given, "steps": 1} if alone else given
