"""An expression's spelling, cut into numbers, commands, letters and signs.

A word is cut into names that are known and up to three letters; more are no product of letters. Leaves out what they
make together (expression).
"""

from __future__ import annotations

import re

from capo_ray.tasks.answers.names import ALIASES, FUNCTIONS, GREEK

_NAMES = sorted([*FUNCTIONS, *ALIASES, "pi", *(name for name in GREEK if len(name) > 2)], key=len, reverse=True)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4}(?![\d.A-Za-z]))?)|(?P<command>\\[A-Za-z]+|\\[{}])|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>[-+*/^_()\[\]{}|!',]))"
)
_LONGEST = 600
"""Tokens."""


class Unreadable(ValueError):
    """Not an expression."""


def tokens(text: str) -> list[tuple[str, str, bool]]:
    """(kind, text, whether white space stands before it); words are cut into names and letters."""
    made: list[tuple[str, str, bool]] = []
    place = 0
    text = text.strip().replace("**", "^")
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise Unreadable(f"{text[place : place + 12]!r} is no part of an expression")
        place, kind = found.end(), found.lastgroup or ""
        spaced = found[0][:1].isspace()
        if kind == "word":
            made += _cut(found["word"], spaced)
        else:
            made.append((kind, found[kind], spaced))
    if len(made) > _LONGEST:
        raise Unreadable("too long")
    return made


def _cut(word: str, spaced: bool) -> list[tuple[str, str, bool]]:
    tokens, letters = [], 0
    rest = word
    while rest:
        name = next((name for name in _NAMES if rest.startswith(name)), None)
        if name is not None:
            tokens.append(("command", "\\" + ALIASES.get(name, name), spaced))
        else:
            letters += 1
            tokens.append(("letter", rest[0], spaced))
        rest, spaced = rest[len(name or "x") :], False
    if letters > 3:
        raise Unreadable(f"{word!r} is a word")
    return tokens
