"""A model of a given shape with random weights, to run the pipeline where nothing can be downloaded.

It learns nothing useful; every part around it is real. Leaves out trained tiny models (assets).
"""

from __future__ import annotations

from pathlib import Path

from capo_ray.config.model import Shape


def make_random_model(folder: Path, shape: Shape, *, tokenizer: str, dtype: str, seed: int, tied: bool = True) -> None:
    """Write a Llama of `shape` and a copy of `tokenizer` (with a plain chat template if it has none) to `folder`.

    Raises ValueError when the tokenizer's ids do not fit the shape's vocabulary.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if len(loaded) > shape.vocabulary:
        raise ValueError(
            f"the tokenizer {tokenizer} has {len(loaded)} ids, the model's vocabulary {shape.vocabulary}: ids above it "
            f"have no embedding. Set policy.shape.vocabulary to {len(loaded)} or more, or use another tokenizer."
        )
    if loaded.chat_template is None:
        loaded.chat_template = PLAIN_CHAT
    head_size = min(64, shape.key_value_size)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden_size,
            intermediate_size=4 * shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden_size // head_size,
            num_key_value_heads=shape.key_value_size // head_size,
            max_position_embeddings=shape.window,
            tie_word_embeddings=tied,
            bos_token_id=loaded.bos_token_id,
            eos_token_id=loaded.eos_token_id,
            pad_token_id=loaded.pad_token_id,
        )
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    loaded.save_pretrained(folder)


PLAIN_CHAT = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
