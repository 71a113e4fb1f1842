"""A plain model out of a trainer's checkpoint, without ranks or engines: its float32 weights, put together again.

Leaves out which checkpoint, and where the folder goes (export).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from capo_ray.engines.causal_model import save_weights
from capo_ray.engines.trainer_state import DESCRIPTION, TAG, data_alone, read_state

_WRAPPED = "model."
"""How names begin in DeepSpeed's files, where the model stands in a Scorer."""


def write_policy(trainer: Path, folder: Path) -> None:
    """From `trainer`, what a rank's `save` was given, to `folder`, which is there and which transformers and vLLM load
    then. Needs memory for the weights in float32. Raises ValueError where a parameter is missing, OSError where the
    disk takes no more."""
    state = read_state(str(trainer))
    dtype = getattr(torch, state.dtype.removeprefix("torch."))
    with data_alone(str(trainer)), redirect_stdout(StringIO()):  # DeepSpeed says how it goes about it
        found = _of_ranks(trainer) if state.zero_stage else _of_one(trainer)
    missing = [name for name in state.shapes if f"{_WRAPPED}{name}" not in found]
    if missing:
        raise ValueError(f"the checkpoint {trainer} lacks {len(missing)} parameters, first {missing[0]}")
    for file in (trainer / DESCRIPTION).iterdir():
        shutil.copy(file, folder)
    weights = {name: found[f"{_WRAPPED}{name}"].to(dtype, copy=True) for name in state.shapes}  # views of one
    save_weights(weights, str(folder))


def _of_ranks(trainer: Path) -> Mapping[str, Tensor]:
    """Of ZeRO 1 to 3, out of every rank's share."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found: Mapping[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(trainer), tag=TAG)
    return found


def _of_one(trainer: Path) -> Mapping[str, Tensor]:
    """Without ZeRO every rank has all, and the first one's file says so."""
    file = trainer / TAG / "mp_rank_00_model_states.pt"
    found: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)["module"]
    return found
