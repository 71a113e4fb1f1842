"""What one DeepSpeed rank holds, counted: the tensors that are alive at the moments when it holds most."""

import gc
from typing import Any

import pytest
from engines.trainer_ranks import Case, batch_of, engine_of

MODEL = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
"""Large beside the activations of a handful of tokens."""
BUFFER = 400_000_000
"""Bytes; what is larger is DeepSpeed's reduce bucket, which does not grow with the model."""


def storages() -> dict[int, Any]:
    """Address -> storage of every tensor there is, gradients too."""
    from torch import Tensor
    from torch.nn import Parameter

    found: dict[int, Any] = {}
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, Parameter)]
    for tensor in [*tensors, *(thing.grad for thing in tensors if thing.is_leaf and thing.grad is not None)]:
        try:
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.nbytes():
                found[storage.data_ptr()] = storage
        except (NotImplementedError, RuntimeError):  # tensors without a storage
            continue
    return found


def bytes_per_parameter(rank: int, ranks: int, case: Case) -> dict[str, float]:
    """Between updates, and most while gradients are summed up and in the optimizer step."""
    import torch

    gc.collect()
    before = storages()  # held, so that no address is given out again
    with engine_of(case, rank, ranks) as engine:
        inner = engine._engine
        count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in engine._model.parameters())

        def alive() -> float:
            new = [storage.nbytes() for address, storage in storages().items() if address not in before]
            return sum(size for size in new if size < BUFFER) / count

        batch = batch_of(case, rank, ranks)
        engine.update(batch)  # the moments are made in the first step
        gc.collect()
        seen = {"between": alive(), "summing": 0.0, "step": 0.0}

        def watched(moment: str, plain: Any) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                made = plain(*arguments, **named)
                seen[moment] = max(seen[moment], alive())
                return made

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inner, "backward", watched("summing", inner.backward))
            for name in ("flatten", "flatten_dense_tensors_aligned"):
                if hasattr(inner.optimizer, name):
                    patch.setattr(inner.optimizer, name, watched("step", getattr(inner.optimizer, name)))
            patch.setattr(torch.optim.AdamW, "step", watched("step", torch.optim.AdamW.step))
            engine.update(batch)
        return seen
