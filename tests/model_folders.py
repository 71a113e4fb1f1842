"""Folders of small models in the shapes of the families that people use: config.json, tokenizer, chat template and
weights as theirs are laid out, everything in them made here.

Leaves out what the models would say: the weights are zeros.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = ["First add 2 and 3.\n\nThat makes 5.\n\nSo it is \\boxed{5}.", " é 😀", "system user assistant Be brief."] * 4
SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
ROLES = "{% for m in messages %}"
CHATML = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- for m in messages %}{%- if m.role != 'system' %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}"
    "{%- if tools is not none %}{{- 'TOOLS' }}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
QWEN_3 = (
    "{%- set ns = namespace(last=messages|length - 1, open=true) %}"
    "{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.open and m.role == 'user' %}{%- set ns.open = false %}{%- set ns.last = i %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content %}"
    "{%- if m.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
    "{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- else -%}"
    "{%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}{%- set rest = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}"
    "{%- if m['content'] is string -%}{{ m['content'] | trim }}{%- elif m['content'] is iterable -%}"
    "{%- for item in m['content'] -%}{{ item['text'] | trim }}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{%- set ns = namespace(index=0) %}{%- for m in loop_messages %}"
    "{%- if not (m.role == 'tool' or (m.tool_calls is defined and m.tool_calls is not none)) %}"
    "{%- set ns.index = ns.index + 1 %}{%- endif %}{%- endfor %}{{- bos_token }}"
    "{%- for m in loop_messages %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif m['role'] == 'assistant' %}{{- ' ' + m['content'] | trim + eos_token }}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
)
PHI_4 = (
    "{% for m in messages %}{% if (m['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + m['content'] + "
    "'<|im_end|>'}}{% elif (m['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + m['content'] + '<|im_end|>'}}"
    "{% elif (m['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + m['content'] + '<|im_end|>'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SMOLLM_3 = (
    "{# defaults #}\n{%- if enable_thinking is not defined %}\n{%- set enable_thinking = true %}\n{%- endif %}\n"
    "{%- macro turn(role, text) %}{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}{%- endmacro %}\n"
    "{%- if messages[0].role == 'system' %}{{- turn('system', messages[0].content.rstrip()) }}"
    "{%- set messages = messages[1:] %}{%- endif %}\n"
    "{%- for m in messages -%}\n{%- set content = m.content if m.content is string else '' -%}\n"
    "{%- if m.role == 'user' -%}{{ turn('user', content) }}\n"
    "{%- elif m.role == 'assistant' -%}\n{% generation %}\n{%- set thoughts = '' if enable_thinking else 'x' -%}\n"
    "{{ '<|im_start|>assistant\\n' + thoughts + content.lstrip('\\n') + '<|im_end|>\\n' }}\n{%- endgeneration -%}\n"
    "{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n{%- endif %}"
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{{'<｜User｜>' + m['content']}}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['content'] is not none %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What differs between them."""

    template: str
    special: tuple[str, ...]
    """Special tokens; the first is the beginning of a text, the second its end."""
    text: tuple[str, ...] = ()
    """Added tokens that are no special ones."""
    metaspace: bool = False
    """The tokenizer marks spaces and falls back to bytes; else it is byte-level."""
    config: Mapping[str, Any] = field(default_factory=dict)
    inside: Mapping[str, Any] | None = None
    """A text_config, where the language model is one part of several."""
    beyond: str = ""
    """A special token for which the model has no embedding."""
    alone: bool = True
    """The template is a file of its own."""


FAMILIES = {
    "llama 3": Family(
        LLAMA, ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        config={"model_type": "llama"}, alone=False,
    ),
    "qwen 2.5": Family(CHATML, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), config={"model_type": "qwen2"}),
    "qwen 3": Family(
        QWEN_3, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), ("<think>", "</think>"), config={"model_type": "qwen3"}
    ),
    "gemma 3, text": Family(
        GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), metaspace=True,
        config={"model_type": "gemma3_text"}, beyond="<image_soft_token>",
    ),
    "gemma 3": Family(
        GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), metaspace=True,
        config={"model_type": "gemma3", "vision_config": {"hidden_size": 4, "num_hidden_layers": 3}},
        inside={"model_type": "gemma3_text"},
    ),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), metaspace=True, config={"model_type": "mistral"}),
    "mistral 3": Family(
        MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), metaspace=True,
        config={
            "model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"],
            "vision_config": {"model_type": "pixtral", "hidden_size": 4, "num_hidden_layers": 3},
        },
        inside={"model_type": "mistral"},
    ),
    "phi 4": Family(
        PHI_4, ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_sep|>"), config={"model_type": "phi3"}
    ),
    "smollm 3": Family(
        SMOLLM_3, ("<|begin_of_text|>", "<|im_end|>", "<|im_start|>"), ("<think>", "</think>"),
        config={"model_type": "smollm3"},
    ),
    "deepseek distilled": Family(
        DEEPSEEK, ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"), config={"model_type": "qwen2"},
    ),
}  # fmt: skip


def make(folder: Path, family: Family) -> Path:
    """Write it; returns `folder`."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    tokens = _tokenizer(family)
    count = tokens.get_vocab_size() - bool(family.beyond)
    tokens.save(str(folder / "tokenizer.json"))
    names = {"bos_token": family.special[0], "eos_token": {"__type": "AddedToken", "content": family.special[1]}}
    settings: dict[str, Any] = {**names, "tokenizer_class": "PreTrainedTokenizerFast"}
    if family.alone:
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    else:
        settings["chat_template"] = family.template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shape = {**SHAPE, "vocab_size": count, "max_position_embeddings": 256}
    config = {**family.config, **shape} if family.inside is None else {**family.config, "text_config": shape}
    (folder / "config.json").write_text(json.dumps(config))
    before = "model." if family.inside is None else "language_model.model."
    tensors = {f"{before}layers.{n}.mlp.up_proj.weight": np.zeros((4, 8), np.float32) for n in range(2)}
    tensors[f"{before}embed_tokens.weight"] = np.zeros((count, 8), np.float32)
    if family.inside is not None:
        tensors |= {f"vision_tower.encoder.layers.{n}.fc.weight": np.zeros((4, 4), np.float32) for n in range(3)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tokenizer(family: Family) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if family.metaspace:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet, first = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), []
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=700, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    )
    spec = json.loads(tokenizer.to_str())
    tokenizer = Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))  # bytes are tokens like others
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in family.special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.text])
    if family.beyond:
        tokenizer.add_special_tokens([AddedToken(family.beyond, special=True)])
    return tokenizer
