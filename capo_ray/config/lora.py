"""Settings of low-rank adapters, which a run's trainer and supervised training share.

Leaves out how adapters are made (engines.lora) and how they reach the engines that sample (`cluster.lora_sync`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

from capo_ray.config.block import Block, setting

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's engines have room for adapters of these; it fills up smaller ones."""


def held_rank(rank: int) -> int:
    """Of the room for an adapter of `rank`, which is at most the last of VLLM_RANKS."""
    return min(held for held in VLLM_RANKS if held >= rank)


class Lora(Block):
    """Low-rank adapters (LoRA, arXiv 2106.09685): two small matrices beside each of some layers learn, whose product is
    added to that layer's weights; these stay as they are."""

    rank: int = setting("rows of the one matrix, columns of the other", 16, unit="numbers", source="peft `r`", ge=1)
    alpha: int = setting(
        "their product is taken times `alpha` / `rank`", 32, unit="none", source="peft `lora_alpha`", gt=0
    )
    targets: tuple[str, ...] | None = setting(
        "the layers, by the last part of their names, such as q_proj; null: every linear layer but the head",
        None,
        source="peft `target_modules`",
    )
    dropout: float = setting(
        "share of the inputs of the first matrix that is dropped while it learns; in supervised training alone",
        0.0,
        unit="share",
        source="peft `lora_dropout`",
        ge=0,
        lt=1,
    )

    @field_validator("targets")
    @classmethod
    def _named(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and not all(name.strip() for name in targets or ("",)):
            raise ValueError("must name a layer, such as [q_proj,v_proj], or be null: every linear layer but the head")
        return targets

    def shape(self) -> dict[str, Any]:
        """What a checkpoint depends on: with another of these it is of another adapter."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": self.targets and sorted(set(self.targets))}


def difference(saved: Mapping[str, Any] | None, here: Mapping[str, Any] | None) -> str | None:
    """Between two `Lora.shape`s, None where there is no adapter: in words, or None where they are equal."""
    if saved == here:
        return None
    return f"{_in_words(saved)} there, {_in_words(here)} here"


def _in_words(shape: Mapping[str, Any] | None) -> str:
    if shape is None:
        return "all weights learn"
    targets = "all linear layers" if shape["targets"] is None else ", ".join(shape["targets"])
    return f"LoRA of rank {shape['rank']} and alpha {shape['alpha']} on {targets}"
