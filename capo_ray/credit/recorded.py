"""A response that was recorded somewhere, as a member of its group: its text or its token ids, its outcome and what
critics said of it.

Leaves out: where records are read from and what is made of a group (see `credit.__main__` and `notebook`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from capo_ray.credit.group import Member
from capo_ray.credit.reply import parse
from capo_ray.credit.steps import BLANK_LINE, steps_of
from capo_ray.credit.tokens import read_tokenizer
from capo_ray.types import Rollout


class Tokens:
    """A tokenizer: ids to text by its table, text to ids by the library, which is loaded when first needed."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, or ValueError that names the file."""
        self._path = path
        self._source, self._table = read_tokenizer(path)

    @cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(self._source)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"{self._path}: the tokenizers library does not read it: {error}") from error
        tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text

        def encode(text: str) -> list[int]:
            text.encode("utf-8")  # a lone surrogate is a ValueError here and a TypeError there
            return tokenizer.encode(text, add_special_tokens=False).ids

        return encode

    def read(self, text: str | None, token_ids: list[int] | None) -> tuple[list[int], str, tuple[int, ...]]:
        """Ids, text and char_ends from either or both of text and ids."""
        ids = self._encode(text or "") if token_ids is None else token_ids
        decoded, char_ends = self._table.decode(ids)
        if text is not None and text != decoded:
            at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, decoded, strict=False)))
            how = "its token_ids decode to" if token_ids is not None else "the tokenizer makes of it and back"
            here, there = text[at : at + 20], decoded[at : at + 20]
            raise ValueError(f"text is not what {how}: from character {at}, {here!r} against {there!r}")
        return ids, decoded, char_ends


def read_response(entry: Any, index: int, tokens: Tokens, between: re.Pattern[str] = BLANK_LINE) -> Member:
    """One entry of a group's `responses`. Raises ValueError naming the field at fault."""
    if not isinstance(entry, dict):
        raise ValueError(f"a response must be an object, got {short(entry)}")
    text, token_ids = entry.get("text"), entry.get("token_ids")
    outcome, critiques = entry.get("outcome"), entry.get("critiques", [])
    if text is None and token_ids is None:
        raise ValueError("a response needs text or token_ids")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text must be a string, got {short(text)}")
    if token_ids is not None and not _is_ids(token_ids):
        raise ValueError(f"token_ids must be a list of integers from 0, got {short(token_ids)}")
    if outcome not in (0, 1):
        raise ValueError(f"outcome must be 0 or 1, got {short(outcome)}")
    if not isinstance(critiques, list) or not all(isinstance(critique, str) for critique in critiques):
        raise ValueError(f"critiques must be a list of strings, got {short(critiques)}")
    ids, text, char_ends = tokens.read(text, token_ids)
    steps = steps_of(text, char_ends, between)
    rollout = Rollout(
        prompt_id="",
        index=index,
        text=text,
        finish="stop",
        token_ids=tuple(ids),
        logprobs=(0.0,) * len(ids),
        char_ends=char_ends,
        versions=(0,),
    )
    return Member(
        rollout=rollout,
        steps=steps,
        critiques=tuple(parse(critique, len(steps)) for critique in critiques),
        answer="correct" if outcome else "wrong",
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int} and min(value, default=0) >= 0


def short(value: Any) -> str:
    """The beginning of a value that is at fault, for a message."""
    return json.dumps(value, default=str)[:60]
