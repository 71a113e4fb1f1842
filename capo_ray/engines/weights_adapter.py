"""An adapter that arrived at an engine, inside vLLM's worker process: given to vLLM's own LoRA, in place of the last.

vLLM would read an adapter from a folder, which engines on other machines do not see. The second matrices arrive scaled,
so that nothing but the tensors need be known. Leaves out how they arrive (weights_receive) and that requests name the
adapter (rollout_vllm).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from capo_ray.engines.vllm_engine import ADAPTER
from capo_ray.engines.weights import NamedTensor


class Arriving:
    """Stands in for the model while an adapter arrives."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterable[NamedTensor]) -> None:
        for name, tensor in weights:  # of a buffer that is written over by the next piece
            self.tensors[name] = tensor.to("cpu", copy=True)


def take_up(manager: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Have vLLM's `manager` of adapters compute with these, by peft's names, from the next token on. Raises ValueError
    where a layer that they belong to takes none in vLLM: the trainer would learn what is never sampled from."""
    adapters = manager._adapter_manager
    renamed = getattr(adapters.model, "hf_to_vllm_mapper", None)
    rank = next(len(tensor) for name, tensor in tensors.items() if ".lora_A." in name)
    made = LoRAModel.from_lora_tensors(
        ADAPTER.lora_int_id,
        dict(tensors),
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=renamed.get_rename_mapper() if renamed is not None else None,
    )
    adapters.remove_adapter(made.id)
    adapters.add_adapter(made)
    if unused := made.loras.keys() - adapters.modules.keys():
        raise ValueError(
            f"vLLM's {type(adapters.model).__name__} takes no adapter at {len(unused)} of the layers that learn, the "
            f"first is {min(unused)}: set cluster.lora_sync=merged, or trainer.lora.targets without it"
        )
    adapters.activate_adapter(made.id)
