"""What a trainer's checkpoint says of itself beside its numbers, and whether an engine may continue from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.lora import difference

_FILE = "trainer.json"
DESCRIPTION = "model"
"""Folder of the model's own files beside its weights, so that a checkpoint can be exported from by itself."""
FORMAT = 2
"""1 was DeepSpeed's own files, which no other number of ranks could read (files.checkpoint refuses it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    step: int
    """Optimizer steps taken or skipped."""
    taken: int
    """Those taken, as AdamW counts them."""
    version: int
    ranks: int
    """That wrote it, at this ZeRO stage; any number at any stage reads it."""
    zero_stage: int
    dtype: str
    """In which the model computes; what is kept is float32."""
    architecture: str
    shapes: Mapping[str, Sequence[int]]
    """Name and full shape of every parameter that learns."""
    files: Sequence[str] = ()
    """All that the ranks wrote beside this one."""
    lora: Mapping[str, Any] | None = None
    """`Lora.shape` of the adapter that learns; null: the whole model does."""
    base: str = ""
    """Which weights the adapter belongs to (engines.lora)."""
    format: int = FORMAT

    def write(self, folder: str) -> None:
        (Path(folder) / _FILE).write_text(json.dumps(asdict(self), indent=1))

    def check_continues(self, saved: TrainerState, folder: str) -> None:
        """Raises ValueError unless an engine in this state can load what `saved` describes."""
        if differs := difference(saved.lora, self.lora):
            raise ValueError(f"the checkpoint {folder} is of another adapter: {differs}")
        if saved.base != self.base:
            raise ValueError(f"the checkpoint {folder} is of an adapter to other weights than those of the model here")
        if saved.shapes != self.shapes:
            raise ValueError(
                f"the checkpoint {folder} is of another model: {saved._model()} there, {self._model()} here; "
                f"they differ first at {_first_difference(saved.shapes, self.shapes)}"
            )

    @property
    def pieces(self) -> list[str]:
        return [name for name in self.files if name.startswith("pieces_")]

    def _model(self) -> str:
        count = sum(math.prod(shape) for shape in self.shapes.values())
        return f"{self.architecture} with {count:,} parameters in {len(self.shapes)} tensors"


def read_state(folder: str) -> TrainerState:
    file = Path(folder) / _FILE
    if not file.is_file():
        raise ValueError(f"there is no trainer checkpoint in {folder}: {_FILE} is missing")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the checkpoint {folder} is broken: {_FILE} is no JSON ({error})") from error
    if (format := said.get("format", 1)) != FORMAT:
        raise ValueError(f"the checkpoint {folder} is of format {format}, this version reads {FORMAT}")
    return TrainerState(**said)


def _first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    name = next((name for name in [*there, *here] if there.get(name) != here.get(name)), "the order of tensors")
    return f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
