"""The tokenizer of the tiny models: a byte-level BPE of a few hundred entries, trained on the tiny world's own texts.

It encodes any text, since all 256 bytes are entries, and cuts like its large relatives where that matters here: full
stop and blank line are one token, which straddles the end of a step. Unlike theirs, a whole number up to 99 is one
token, and the space before a number goes with what precedes it, so that 7 is the same token in "7 + 8" and in "add 7".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

PADDING, BEGIN, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

_SPLIT = (
    r"</?[a-z]+_"  # the tags of steps and lists
    r"|[^\r\n\p{L}\p{N}]?\p{L}+(?: (?=\p{N}))?"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+(?:[\r\n]+| (?=\p{N}))?"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train(texts: Iterable[str], folder: Path, *, vocabulary: int = 512, window: int) -> Any:
    """Train on `texts`, write the files of a Hugging Face tokenizer to `folder`, and return it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PADDING, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=[BEGIN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=window,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder, save_jinja_files=False)
    return fast
