"""One engine of vLLM, as its actor is told of it. Imports no vLLM: who starts an actor may have none at hand.

Leaves out what vLLM makes of it (vllm_engine).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from capo_ray.config.blocks import Rollout
from capo_ray.config.critic import Voter

_NOT_OF_ONE_ENGINE = {"workers", "same_critic", "max_response_tokens", "temperature", "top_p", "top_k"}
"""Said of all engines together, or with each request."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmSettings:
    """One engine, whatever its role: its block of the configuration, and what a run finds out beside it. Travels to
    another machine."""

    block: Rollout | Voter
    model: str
    """Folder."""
    tokenizer: str
    """Folder."""
    dtype: str
    window: int | None
    """Tokens of prompt and response together; None: the model's own."""
    device: str
    chat_template: str | None = None
    """Of a critic's conversations; None: the tokenizer's own."""
    weight_transfer: str | None = None
    """Transport of weights_receive by name; None for a frozen model."""
    lora_rank: int | None = None
    """Of the adapters that arrive by it; None: whole weights do."""
    judges: bool = False
    """Whether an engine with an adapter completes conversations too, without it."""
    sleeps: bool = False
    """Whether it holds its GPU in turns with others, and is opened when its first comes."""

    def __eq__(self, other: object) -> bool:
        """Whether an engine made of one is like that of the other."""
        return isinstance(other, VllmSettings) and self._of_one_engine() == other._of_one_engine()

    def _of_one_engine(self) -> dict[str, Any]:
        kind = Voter if isinstance(self.block, Voter) else Rollout  # a Critic says how it is asked, too
        names = kind.model_fields.keys() - _NOT_OF_ONE_ENGINE
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "block": {name: getattr(self.block, name) for name in names}
        }
