"""Models of known shapes with random weights, and what a token of training costs in arithmetic.

Nothing is downloaded: a shape is a configuration of transformers, and the tokenizer is the tiny policy's, whose few ids
every vocabulary holds. Leaves out what is done with them (`training`, `sampling`, `syncing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from capo_ray.config.model import Shape
from capo_ray.models.find import ASSETS

Dtype = Literal["float32", "bfloat16"]
TOKENIZER = str(ASSETS / "tiny_policy")


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": True,
    }


MODELS: Mapping[str, dict[str, Any]] = {
    "0.5B": _llama(151936, 896, 4864, 24, 14, 2),  # as Qwen2.5-0.5B
    "1B": _llama(128256, 2048, 8192, 16, 32, 8),  # as Llama-3.2-1B
    "3B": _llama(128256, 3072, 8192, 28, 24, 8),  # as Llama-3.2-3B
    "tiny": _llama(512, 64, 128, 2, 2, 1),
}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that the plan counts by."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    per_layer = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inner + 2 * hidden
    return Shape(
        parameters=config["vocab_size"] * hidden + layers * per_layer + hidden,
        layers=layers,
        hidden_size=hidden,
        key_value_size=key_value,
        vocabulary=config["vocab_size"],
        window=config["max_position_embeddings"],
    )


def flops_per_token(shape: Shape, tokens: int) -> float:
    """Of a forward and a backward pass over a sequence of so many tokens: 6 per weight (the head is one, as the
    embedding is tied to it), and 6 x layers x width x tokens for causal attention. What checkpointing does again does
    not count."""
    return 6.0 * shape.parameters + 6.0 * shape.layers * shape.hidden_size * tokens


def write_model(folder: Path, config: Mapping[str, Any], *, dtype: Dtype, seed: int) -> str:
    """A model of that shape with random weights, as a folder that vLLM loads."""
    import torch

    from capo_ray.engines import causal_model
    from capo_ray.engines.trainer_files import write_weights

    model = causal_model.make(config, dtype=getattr(torch, dtype), seed=seed)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    causal_model.write_description(model, str(folder), TOKENIZER)
    write_weights(weights, folder, adapter=False)
    return str(folder)
