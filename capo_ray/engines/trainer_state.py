"""What a trainer checkpoint says of itself beside DeepSpeed's files, and whether an engine may continue from it."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_FILE = "trainer.json"
DESCRIPTION = "model"
"""Folder of the model's own files beside its weights, so that a checkpoint can be exported from by itself."""
TAG = "deepspeed"
"""Of DeepSpeed's own files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    step: int
    """Optimizer steps taken or skipped."""
    version: int
    ranks: int
    zero_stage: int
    dtype: str
    architecture: str
    shapes: Mapping[str, Sequence[int]]
    """Name and full shape of every parameter."""

    def write(self, folder: str) -> None:
        (Path(folder) / _FILE).write_text(json.dumps(asdict(self), indent=1))

    def check_continues(self, saved: TrainerState, folder: str) -> None:
        """Raises ValueError unless an engine in this state can load what `saved` describes."""
        for key in ("ranks", "zero_stage", "dtype"):
            there, here = getattr(saved, key), getattr(self, key)
            if there != here:
                raise ValueError(f"the checkpoint {folder} was written with {key} {there}, this trainer has {here}")
        if saved.shapes != self.shapes:
            raise ValueError(
                f"the checkpoint {folder} is of another model: {saved._model()} there, {self._model()} here; "
                f"they differ first at {_first_difference(saved.shapes, self.shapes)}"
            )

    def _model(self) -> str:
        count = sum(math.prod(shape) for shape in self.shapes.values())
        return f"{self.architecture} with {count:,} parameters in {len(self.shapes)} tensors"


def read_state(folder: str) -> TrainerState:
    file = Path(folder) / _FILE
    if not file.is_file():
        raise ValueError(f"there is no trainer checkpoint in {folder}: {_FILE} is missing")
    return TrainerState(**json.loads(file.read_text()))


def _first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    name = next((name for name in [*there, *here] if there.get(name) != here.get(name)), "the order of tensors")
    return f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"


@contextmanager
def data_alone(path: str) -> Iterator[None]:
    """Inside, torch.load takes numbers and the few classes that DeepSpeed keeps beside them, whatever it is asked for:
    a checkpoint may come from anybody, and what is unpickled runs code. Raises ValueError that names `path`."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    forced = {name: os.environ.pop(name, None) for name in (_FORCED, _FORCED_NOT)}
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        found = _FOREIGN.search(str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(f"the checkpoint {path} holds more than numbers{what}, and is not loaded") from error
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in forced.items() if value is not None})


_FORCED, _FORCED_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
"""In torch's message, what is not to be loaded."""


def write_random_state(folder: str, rank: int) -> None:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    state = {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}
    torch.save(state, Path(folder) / f"random_{rank}.pt")


def read_random_state(folder: str, rank: int) -> None:
    state = torch.load(Path(folder) / f"random_{rank}.pt", weights_only=True)
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
