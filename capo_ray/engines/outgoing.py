"""The policy's weights as they leave a trainer rank: whole for the engines that sample, or the adapter alone.

Under ZeRO-3 each tensor is gathered when its turn comes, so all ranks must iterate, to the end. Leaves out how they
travel (weights_*), and float32 weights and moments (optimizer_pieces).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from capo_ray.config.blocks import Trainer
from capo_ray.engines import causal_model, lora
from capo_ray.engines.causal_model import shape_of

Kind = Literal["merged", "adapter"]
"""What the engines that sample are sent of a policy with an adapter."""
Shapes = list[tuple[str, torch.dtype, tuple[int, ...]]]


class Outgoing:
    """Of one model."""

    def __init__(self, model: Any, trainer: Trainer, *, sends: Kind, folder: str | None, tokenizer: str | None) -> None:
        """`folder`: where the model's weights are from, if from one; `tokenizer`: the folder of its tokenizer."""
        self._model, self._sends = model, sends
        self._lora, self._partitioned = trainer.lora, trainer.zero_stage == 3
        self._folder, self._tokenizer = folder, tokenizer
        self.base = lora.identity_of(folder) if trainer.lora and folder else ""
        """Of the weights beneath the adapter, as they were when they were loaded."""

    def sent(self) -> Iterator[tuple[str, Tensor]]:
        """A sync: (name, copy of the full tensor), tied ones once, in the model's order. `merged`: every weight by its
        name in the model's folder; `adapter`: its matrices by their names in the adapter's, the second one scaled."""
        if self._sends == "merged":
            yield from self._whole()
            return
        scales = lora.scales(self._model)
        for name, tensor in self.kept():
            yield name, tensor * scales.get(name, 1.0)

    def sent_shapes(self) -> Shapes:
        """What `sent` will yield, without gathering anything."""
        return self._of_whole() if self._sends == "merged" else self.kept_shapes()

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """What files hold, as `sent` yields it: all that learns."""
        for name, parameter in lora.learnt(self._model):
            with self._gathered([parameter]):
                full = parameter.detach().clone()
            yield name, full

    def describe(self, folder: Path) -> None:
        """All of the files but the weights, from one rank."""
        causal_model.write_description(self._model, str(folder), self._tokenizer)
        if self._lora is not None:
            lora.write_description(self._lora, self._folder, self.base, folder)

    def kept_shapes(self) -> Shapes:
        return [(name, parameter.dtype, shape_of(parameter)) for name, parameter in lora.learnt(self._model)]

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter, layer in lora.plain(self._model):
            with self._gathered(lora.parts_of(parameter, layer)):
                full = lora.merged(parameter, layer)
            yield name, full

    def _of_whole(self) -> Shapes:
        return [(name, parameter.dtype, shape_of(parameter)) for name, parameter, _ in lora.plain(self._model)]

    def _gathered(self, parameters: list[Any]) -> Any:
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, enabled=self._partitioned)
