"""Where a model thinks and where it speaks: the marks that models put around their thoughts (docs/algorithm.md 2, 3).

What stands in thoughts is a draft: no final answer is read there and no verdict. Known are the marks of the model
families below, in any letter case, whether they were sampled as text or as a special token (`is_mark`). Everything
before a closing mark that was never opened is a thought, since many chat templates open it in the prompt; so is
everything behind an opening mark that was never closed. Takes linear time. Leaves out what is read of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from capo_ray.types import Span

NAMES = r"(?:(?:seed:|longcat_)?think(?:ing)?|thoughts?|reasoning|scratchpad)"
"""Of the usual pairs, `<think>` and `</think>`: DeepSeek, Qwen, Seed, LongCat, EXAONE."""

_PAIRS: tuple[tuple[str, str], ...] = (
    (rf"<\s?{NAMES}\s?>", rf"<\s?/\s?{NAMES}\s?>"),
    (rf"\[{NAMES}\]", rf"\[/{NAMES}\]"),  # Magistral
    (rf"◁{NAMES}▷", rf"◁/{NAMES}▷"),  # Kimi
    (rf"<\|{NAMES}\|>", rf"<\|/{NAMES}\|>"),
    (rf"<\|(?:begin_of|start)_{NAMES}\|>", rf"<\|end_(?:of_)?{NAMES}\|>"),  # OpenThinker, Command A
    (rf"<\|{NAMES}_start\|>", rf"<\|{NAMES}_end\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    # gpt-oss: every channel but the final one. A server that drops its special tokens leaves their words behind.
    (
        r"<\|channel\|>\s?(?!final)\w+|\A\s*(?-i:analysis(?=[A-Z]))",
        r"<\|channel\|>\s?final(?:\s?<\|message\|>)?|<\|end\|>|(?-i:assistantfinal)",
    ),
)
_END = "<|end|>"
"""Closes a thought of gpt-oss and nothing else: other models end a turn with it."""
_MARK = re.compile(
    "|".join(f"(?P<open{i}>{opening})|(?P<close{i}>{closing})" for i, (opening, closing) in enumerate(_PAIRS)),
    re.IGNORECASE,
)
_MAY_BEGIN = re.compile(r"<|\[|◁|assistantfinal")
"""What marks begin with, but for those at the start of a text; all are looked for at once, one by one is slow."""
_OPENS = "|".join(opening for opening, _ in _PAIRS)
_OPEN_AT_END = re.compile(rf"(?:{_OPENS})(?:<\|message\|>)?\s*\Z", re.IGNORECASE)
_LONGEST_MARK = 100
_IN_VOCABULARY = re.compile(r"<\|(?:channel|message)\|>|<\|channel>|<channel\|>", re.IGNORECASE)
"""Special tokens of which marks are made."""


class Said(NamedTuple):
    """A text without its thoughts."""

    text: str
    unfinished: bool
    """Whether it ends inside a thought."""


def said(text: str) -> Said:
    """What `text` says outside of thoughts."""
    spans, unfinished = thoughts(text)
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return Said("".join(text[end:start] for end, start in zip(ends, starts, strict=True)), unfinished)


def thoughts(text: str) -> tuple[list[Span], bool]:
    """Where the thoughts of `text` stand with their marks, ascending, and whether the last was never closed."""
    spans: list[Span] = []
    opened: tuple[int, int] | None = None  # family, start
    for mark in _marks(text):
        kind = mark.lastgroup or ""
        family = int(kind.removeprefix("open").removeprefix("close"))
        if kind.startswith("open"):
            opened = opened or (family, mark.start())
        elif opened is not None and opened[0] == family:
            spans.append((opened[1], mark.end()))
            opened = None
        elif opened is None and mark[0].lower() != _END:
            spans = [(0, mark.end())]
    if opened is not None:
        spans.append((opened[1], len(text)))
    return spans, opened is not None


def _marks(text: str) -> Iterator[re.Match[str]]:
    """What `_MARK.finditer` finds, in a hundredth of the time."""
    end = 0
    for start in chain((0,), (place.start() for place in _MAY_BEGIN.finditer(text))):
        if start >= end and (mark := _MARK.match(text, start)):
            end = mark.end()
            yield mark


def open_mark(prompt: str) -> str:
    """The mark at the end of a prompt that opens a thought, as chat templates of thinking models write it; what the
    model writes begins inside of it. Empty where there is none."""
    found = _OPEN_AT_END.search(prompt[-_LONGEST_MARK:])
    return found[0] if found else ""


def is_mark(token: str) -> bool:
    """Whether a special token is a mark, or a part of one: it belongs to the text then."""
    return bool(_MARK.fullmatch(token) or _IN_VOCABULARY.fullmatch(token)) and token.lower() != _END
