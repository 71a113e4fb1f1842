"""A plain model, or an adapter, out of a trainer's checkpoint, and an adapter merged into its model; without ranks.

Leaves out which checkpoint, and where the folder goes (export).
"""

from __future__ import annotations

import json
import math
import shutil
from contextlib import closing
from pathlib import Path

import torch

from capo_ray.config.lora import Lora
from capo_ray.engines import causal_model, lora
from capo_ray.engines.trainer_files import Saved, write_weights
from capo_ray.engines.trainer_state import DESCRIPTION, read_state


def write_policy(trainer: Path, folder: Path) -> None:
    """From `trainer`, what the ranks' `save` was given, to `folder`, which is there: a model that transformers and vLLM
    load then, or an adapter as one of peft's. Needs memory for the weights. Raises ValueError where some of a parameter
    is missing, OSError where the disk takes no more."""
    state = read_state(str(trainer))
    dtype = getattr(torch, state.dtype.removeprefix("torch."))
    with closing(Saved(str(trainer), state.pieces)) as saved:
        weights = {
            name: saved.read("weight", name, 0, math.prod(shape)).to(dtype).view(*shape)
            for name, shape in state.shapes.items()
        }
    for file in (trainer / DESCRIPTION).iterdir():
        shutil.copy(file, folder)
    write_weights(weights, folder, adapter=state.lora is not None)


def write_merged(adapter: Path, folder: Path) -> None:
    """From `adapter`, which a trainer has written, to `folder`, which is there: the model of whole weights, those of a
    sync to the last bit. Needs memory for the weights twice. Raises ValueError where the model that the adapter belongs
    to is not where it was, or has other weights."""
    from safetensors.torch import load_file

    base = _base_of(adapter)
    said = json.loads((adapter / lora.CONFIG).read_text(encoding="utf-8"))
    named = said["target_modules"]
    config = Lora(rank=said["r"], alpha=said["lora_alpha"], targets=None if isinstance(named, str) else tuple(named))
    tensors = load_file(adapter / lora.WEIGHTS)
    model = causal_model.make(base, dtype=next(iter(tensors.values())).dtype, seed=0)
    lora.adapt(model, config, seed=0)
    lora.load(model, tensors)
    weights = {name: lora.merged(parameter, layer) for name, parameter, layer in lora.plain(model)}
    for file in adapter.iterdir():
        if file.is_file() and file.name not in lora.FILES:  # supervised training has its checkpoint there
            shutil.copy(file, folder)
    write_weights(weights, folder, adapter=False)


def _base_of(adapter: Path) -> str:
    if not (adapter / lora.BASE).is_file():
        raise ValueError(
            f"{adapter} has no {lora.BASE}, so it is not of this program, and nothing says of which weights it is: "
            "merge it with what made it (of peft, merge_and_unload)"
        )
    said = json.loads((adapter / lora.BASE).read_text(encoding="utf-8"))
    base = str(said["folder"])
    if not Path(base).is_dir():
        raise ValueError(f"{adapter} belongs to the model {base}, which is not there: put that back")
    if lora.identity_of(base) != said["weights"]:
        raise ValueError(f"{adapter} belongs to the model {base}, which has other weights now: put those back")
    return base
