"""A model as it is named in a configuration: where it is, how it is run, and the shape of its decoder.

Leaves out looking for its files (see `models`).
"""

from __future__ import annotations

from typing import Literal

from capo_ray.config.block import Block, setting


class Shape(Block):
    """Shape of a decoder, so that plans and dry runs need no download."""

    parameters: int = setting("number of parameters", unit="weights", gt=0)
    layers: int = setting("decoder layers", unit="layers", source="transformers `num_hidden_layers`", gt=0)
    hidden_size: int = setting(
        "width of the residual stream", unit="numbers", source="transformers `hidden_size`", gt=0
    )
    key_value_size: int = setting(
        "key heads times head size: what one token stores per layer, halved",
        unit="numbers",
        source="transformers `num_key_value_heads` x `head_dim`",
        gt=0,
    )
    vocabulary: int = setting(
        "entries of the embedding, padding included", unit="tokens", source="transformers `vocab_size`", gt=0
    )
    window: int = setting(
        "tokens of prompt and response together", unit="tokens", source="transformers `max_position_embeddings`", gt=0
    )


class Model(Block):
    """A policy or a critic: where its weights are and what shape they have."""

    path: str = setting(
        "folder, Hugging Face id, `asset:NAME` (shipped with the package) or `random` (of `shape`)",
        source="transformers `from_pretrained`",
        pattern=r"\S",
    )
    tokenizer: str | None = setting(
        "folder or id of the tokenizer; null: the model's own", None, source="transformers `AutoTokenizer`"
    )
    shape: Shape | None = setting("null: read from the model's folder", None)
    system_prompt: str | None = setting("system message put before each question", None, source="CAPO")
    chat_template: str | None = setting(
        "Jinja template that conversations are rendered with; null: the tokenizer's own",
        None,
        source="transformers `apply_chat_template`",
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "number format of the weights, in engines and trainer alike", "bfloat16", source="vLLM `dtype`"
    )
