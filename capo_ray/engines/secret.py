"""Keeps a key out of what is said and written down: whole, by half, or encoded.

Leaves out where the key is from and who shows what (critic_http).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from urllib.parse import quote

_SHORTEST = 8
"""Characters below which a key is no secret ("EMPTY", as servers without keys are given): only its whole is masked."""
MASK = "***"


class Secret:
    """One key, or none."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._whole = bool(key) and len(key) < _SHORTEST
        spellings = () if len(key) < _SHORTEST else set(_spellings(key))
        self._spellings = sorted(spellings, key=len, reverse=True)

    def masked(self, text: str, *, whole: bool = True) -> str:
        """`text` with every run that is half of the key or more, in any of its spellings, replaced by MASK.

        Mask first and shorten afterwards: what is cut in the middle is no longer known. `whole`: whether a key too
        short to be a secret is masked too.
        """
        if self._whole and whole:
            return text.replace(self.key, MASK)
        for spelling in self._spellings:
            text = text.replace(spelling, MASK)
        for spelling in self._spellings:
            text = _without(text, spelling)
        return text


def _spellings(key: str) -> Iterator[str]:
    """As it is, and as URLs, hexadecimal and base64 have it, whatever stands before it there."""
    raw = key.encode()
    yield key
    yield quote(key, safe="")
    yield raw.hex()
    yield raw.hex().upper()
    for before in range(3):  # bytes in front of it decide how base64 cuts it
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        inner = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _without(text: str, spelling: str) -> str:
    least = max(_SHORTEST, -(-len(spelling) // 2))
    size = (least + 1) // 2
    pieces = (spelling[at : at + size] for at in range(0, len(spelling) - size + 1, size))
    if not any(piece in text for piece in pieces):
        return text  # any run of `least` characters holds one of these whole
    runs = {spelling[at : at + least] for at in range(len(spelling) - least + 1)}
    kept, end = list[str](), 0
    for at in (at for at in range(len(text) - least + 1) if text[at : at + least] in runs):
        if at > end or not kept:
            kept += [text[end:at], MASK]
        end = at + least
    return "".join([*kept, text[end:]])
