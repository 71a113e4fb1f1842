"""The settings of a supervised training, and how they are given: an experiment, key=value.

Leaves out what the programs share of that (config).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from capo_ray.config.block import Block, setting
from capo_ray.config.blocks import Data, Trainer
from capo_ray.config.compose import composed, conf_dir
from capo_ray.config.fault import ConfigError, line
from capo_ray.config.given import ENDINGS, Given
from capo_ray.config.lora import Lora
from capo_ray.config.model import Model
from capo_ray.config.optimizer import (
    Betas,
    DeepSpeed,
    FinalLrShare,
    GradientCheckpointing,
    HeadFloat32,
    HeadTokens,
    MaxGradNorm,
    Offload,
    Packing,
    Schedule,
    WarmupSteps,
    WeightDecay,
    ZeroStage,
    check_offload,
)
from capo_ray.config.own_files import searched
from capo_ray.config.sensible import unusual_rate
from capo_ray.config.sources import follow
from capo_ray.files.checkpoint import check_trainer
from capo_ray.files.run_dir import RunDirError


class Sft(Block):
    """Settings; given as key=value."""

    model: Model = setting("what is trained: weights, or with a config.json as `path` random ones")
    data: Data = setting("what is learnt from")
    messages_field: str | None = setting(
        "column of conversations; null: `data.question_field` and `data.solution_field`",
        "messages",
        source="OpenAI API `messages`",
    )
    out: str = setting("folder that the trained model is written to")
    epochs: float = setting("passes over the data, unless `steps` is set", 1.0, unit="passes", gt=0)
    steps: int | None = setting("optimizer steps", None, unit="optimizer steps", gt=0)
    sequences_per_update: int = setting(
        "conversations per optimizer step, over all ranks", 32, unit="conversations", source="CAPO: 80", gt=0
    )
    tokens_per_micro_batch: int = setting("tokens, padding included, in one forward pass", 4096, unit="tokens", gt=0)
    max_tokens: int | None = setting(
        "longer conversations are dropped; null: the model's window", None, unit="tokens", gt=1
    )
    learning_rate: float = setting("peak rate of AdamW", 1e-5, unit="none", source="torch `AdamW`; CAPO: 1e-5", gt=0)
    schedule: Schedule = "cosine"
    warmup_steps: WarmupSteps = 0
    final_lr_share: FinalLrShare = 0.0
    weight_decay: WeightDecay = 0.0
    betas: Betas = (0.9, 0.999)
    max_grad_norm: MaxGradNorm = 1.0
    zero_stage: ZeroStage = 0
    offload: Offload = "none"
    ranks: int = setting("processes on this machine", 1, unit="processes", source="DeepSpeed", ge=1)
    device: Literal["auto", "cpu", "gpu"] = setting("where it runs; auto: on GPUs where there are any", "auto")
    gradient_checkpointing: GradientCheckpointing = True
    packing: Packing = "shared"
    head_tokens: HeadTokens = None
    head_float32: HeadFloat32 = False
    lora: Lora | None = setting("as a run's `trainer.lora`; null: all weights learn", None)
    deepspeed: DeepSpeed = Field({})
    seed: int = setting("every random choice of the run is a function of it", 0, unit="none", ge=0)
    evaluation_share: float = setting("share of the conversations held out", 0.0, unit="share", ge=0, lt=1)
    report_every: int = setting("steps between progress lines", 20, unit="optimizer steps", gt=0)
    checkpoint_every: int = setting(
        "steps between checkpoints in OUT/checkpoint; 0: none", 0, unit="optimizer steps", ge=0
    )
    resume: bool = setting("continue from OUT/checkpoint", False)
    dry_run: bool = setting("print settings, plan and an example, then stop", False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_offload(self.offload, self.zero_stage)
        if self.model.path.endswith(".json") and self.model.tokenizer is None:
            raise ValueError("`model.tokenizer` must be set when `model` is a config: there is no tokenizer beside it")
        if self.model.path.endswith(".json") and self.lora is not None:
            raise ValueError(
                "`lora` learns beside weights that are kept, and `model` is a config without any: leave it out"
            )
        if said := unusual_rate(self.learning_rate):
            warnings.warn(said, stacklevel=2)
        if self.data.kind == "arithmetic":
            raise ValueError(f"`data.kind` {self.data.kind} has no texts to learn from; name some with data=FILE")
        if self.messages_field is None and self.data.solution_field is None:
            raise ValueError("`data.solution_field` must be set when `messages_field` is null: solutions are learnt")
        return self

    @property
    def longest_in_a_row(self) -> int | None:
        """Tokens of the longest sequence that may stand beside others; None where none does."""
        if self.packing == "padded":
            return None
        return min(self.max_tokens or self.tokens_per_micro_batch, self.tokens_per_micro_batch)

    def trainer(self) -> Trainer:
        shared = set(Trainer.model_fields) & set(type(self).model_fields)
        return Trainer(**{name: getattr(self, name) for name in shared})


def parse(arguments: Sequence[str]) -> Sft:
    """Settings from `+experiment=NAME` and key=value arguments. Raises ConfigError with one line per fault."""
    from omegaconf import OmegaConf

    experiments = [argument for argument in arguments if argument.lstrip("+").startswith("experiment=")]
    given = [_full(argument) for argument in arguments if argument not in experiments]
    if stray := [argument for argument in given if "=" not in argument or argument.startswith("+")]:
        raise ConfigError(f"{stray[0]}: arguments are key=value")
    own = [Given.of(argument) for argument in experiments]
    if wrong := [argument for argument in experiments if not argument.endswith(("_sft", *ENDINGS))]:
        raise ConfigError(f"{wrong[0]} is no supervised training: the names of those end in _sft")
    with searched(own) as chosen:
        tree = OmegaConf.create(OmegaConf.to_container(composed(None, chosen)) if chosen else {})
    before = OmegaConf.select(tree, "model.path")
    tree.merge_with(OmegaConf.from_cli(given))
    if path := OmegaConf.select(tree, "model.path"):
        beside = [argument.partition("=")[0].removeprefix("model.").split(".")[0] for argument in given]
        tree.merge_with({"model": follow(before, str(path), beside, conf_dir() / "model")})
    try:
        return Sft.model_validate(OmegaConf.to_container(tree, resolve=True))
    except ValidationError as error:
        raise ConfigError("\n".join(line(fault, Sft) for fault in error.errors())) from None


def _full(argument: str) -> str:
    """`model` and `data` alone stand for their path."""
    key, mark, value = argument.partition("=")
    return f"{key}.path{mark}{value}" if key in ("model", "data") else argument


def checkpoint_of(config: Sft) -> Path:
    return Path(config.out) / "checkpoint"


def check_out(config: Sft) -> None:
    """Raises ConfigError where `out` has no checkpoint to go on from, or something that would be written over."""
    checkpoint = checkpoint_of(config)
    if config.resume and not checkpoint.is_dir():
        raise ConfigError(f"nothing to resume: there is no {checkpoint}")
    if config.resume:
        try:
            check_trainer(checkpoint)
        except RunDirError as error:
            raise ConfigError(f"out: {error}") from error
    there = [path for path in (Path(config.out) / "config.json", checkpoint) if path.exists()]
    if there and not config.resume:
        raise ConfigError(
            f"out: {there[0]} is there already, and nothing is written over: name another folder, remove that one, or "
            "pass resume=true to go on from its checkpoint"
        )
