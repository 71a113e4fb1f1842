"""Low-rank adapters on the trainer's model, by peft: what learns, what the model is with and without them, as files.

Works on a model of transformers in place, and on one without adapters too: there all parameters learn, under their own
names. The weights of the base are never written to: whole weights are made anew from them each time. Leaves out ranks
and shares (train_deepspeed) and vLLM's adapters (weights_receive).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capo_ray.config.lora import Lora

_NAME = "default"
"""Of the adapter, inside peft."""
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
"""Files of an adapter: peft's two, and which weights it belongs to."""
FILES = (CONFIG, WEIGHTS, BASE)
_HEAD_OF_NAMES = "base_model.model."
"""Before every name in peft's files."""
_SAMPLE = 1 << 20
"""Bytes at either end of a file by which weights are told from others."""


def adapt(model: Any, lora: Lora, *, seed: int) -> None:
    """Put an adapter beside each layer that `lora` names; nothing else learns. One matrix is drawn by `seed`, the other
    is zero, so that the model computes what it did. Raises ValueError where it has no such layer."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets_of(model, lora.targets)
    )
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    rest(model)


def rest(model: Any) -> None:
    """Adapters, if any, drop nothing, whatever the rest of the model does."""
    for layer in _layers(model).values():
        layer.lora_dropout.eval()


def targets_of(model: Any, named: Sequence[str] | None) -> list[str]:
    """Full names of the linear layers that are `named` by the last part of theirs; None: all but the head. Raises
    ValueError at the first name that none has."""
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    ends = {name.rpartition(".")[2] for name in linear}
    if not linear:
        raise ValueError(f"lora: {type(model).__name__} has no linear layer but its head")
    if missing := [name for name in named or () if name not in ends]:
        raise ValueError(
            f"lora.targets: {type(model).__name__} has no linear layer {missing[0]!r} beside its head; it has "
            f"{', '.join(sorted(ends))}"
        )
    return [name for name in linear if named is None or name.rpartition(".")[2] in named]


def _layers(model: Any) -> dict[str, Any]:
    """Name in the model's folder -> peft's layer, of each that has an adapter."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def learnt(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """What learns, by its name in a folder of the model, or of the adapter."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield _name_in_files(name), parameter


def _name_in_files(name: str) -> str:
    return f"{_HEAD_OF_NAMES}{name.replace(f'.{_NAME}.', '.')}" if ".lora_" in name else name


def plain(model: Any) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """(name in the model's folder, parameter, peft's layer where an adapter stands beside it), in the model's order."""
    layers = _layers(model)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            layer, base, kind = name.rpartition(".base_layer.")
            yield name.replace(".base_layer.", "."), parameter, layers[layer] if base and kind == "weight" else None


def parts_of(parameter: nn.Parameter, layer: Any) -> list[nn.Parameter]:
    """All that `merged` reads: what ZeRO-3 must have gathered."""
    return [parameter] if layer is None else [parameter, layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight]


def merged(parameter: Tensor, layer: Any) -> Tensor:
    """A copy, with the adapter of `layer` added in float32 or what is wider."""
    if layer is None:
        return parameter.detach().clone()
    wide = torch.promote_types(parameter.dtype, torch.float32)
    first, second = (matrix[_NAME].weight.detach().to(wide) for matrix in (layer.lora_A, layer.lora_B))
    return torch.addmm(parameter.detach().to(wide), second, first, alpha=layer.scaling[_NAME]).to(parameter.dtype)


def scales(model: Any) -> dict[str, float]:
    """Name of each second matrix in the adapter's files -> by how much the product is scaled."""
    return {
        f"{_HEAD_OF_NAMES}{name}.lora_B.weight": float(layer.scaling[_NAME]) for name, layer in _layers(model).items()
    }


class WithoutAdapter:
    """The model as it is without its adapter, as a scorer: the reference, with no second copy of any weight."""

    def __init__(self, scorer: Any, model: Any) -> None:
        self._scorer = scorer
        self._layers = list(_layers(model).values())

    def __call__(self, *given: Any) -> Any:
        """Times zero, and not left out: under ZeRO-3 every pass has to go through the same modules."""
        for layer in self._layers:
            layer.set_scale(_NAME, 0.0)
        try:
            return self._scorer(*given)
        finally:
            for layer in self._layers:
                layer.set_scale(_NAME, 1.0)


@contextmanager
def learning(model: Any) -> Iterator[None]:
    """Inside, adapters drop out; around backward passes too, since checkpointing goes forward in them."""
    for layer in _layers(model).values():
        layer.lora_dropout.train()
    try:
        yield
    finally:
        rest(model)


# ---- as files --------------------------------------------------------------------------------------------------------


def write_description(lora: Lora, base: str | None, identity: str, folder: Path) -> None:
    """peft's description of the adapter, and which weights it belongs to: those of the folder `base`, None where they
    were never in one, which had this identity when they were loaded."""
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets is None else sorted(set(lora.targets)),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    if base is not None:
        said = {"folder": str(Path(base).resolve()), "weights": identity}
        (folder / BASE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def identity_of(base: str) -> str:
    """What tells the weights of that folder from others, from name, size and both ends of each of their files."""
    told = hashlib.sha256()
    for path in sorted([*Path(base).glob("*.safetensors"), *Path(base).glob("*.bin")]):
        size = path.stat().st_size
        told.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            told.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            told.update(file.read(_SAMPLE))
    return told.hexdigest()[:16]


def load(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put the numbers of an adapter's files into an adapted model that is whole in this process."""
    for name, parameter in learnt(model):
        parameter.data.copy_(tensors[name])
