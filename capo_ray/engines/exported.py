"""A plain model out of a trainer's checkpoint, without ranks or engines: its float32 weights, put together again.

Leaves out which checkpoint, and where the folder goes (export).
"""

from __future__ import annotations

import math
import shutil
from contextlib import closing
from pathlib import Path

import torch

from capo_ray.engines.causal_model import save_weights
from capo_ray.engines.trainer_files import Saved
from capo_ray.engines.trainer_state import DESCRIPTION, read_state


def write_policy(trainer: Path, folder: Path) -> None:
    """From `trainer`, what the ranks' `save` was given, to `folder`, which is there and which transformers and vLLM
    load then. Needs memory for the weights. Raises ValueError where some of a parameter is missing, OSError where the
    disk takes no more."""
    state = read_state(str(trainer))
    dtype = getattr(torch, state.dtype.removeprefix("torch."))
    with closing(Saved(str(trainer), state.pieces)) as saved:
        weights = {
            name: saved.read("weight", name, 0, math.prod(shape)).to(dtype).view(*shape)
            for name, shape in state.shapes.items()
        }
    for file in (trainer / DESCRIPTION).iterdir():
        shutil.copy(file, folder)
    save_weights(weights, str(folder))
