"""What the arguments of every program have in common, and a reader of them that needs no library.

`key=value`, one line of help for each setting, one line of error for each fault. Leaves out settings that are models of
pydantic's, which most programs have (config.own_settings), and the configuration of a run (config).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any

WIDTH = 118
COLUMN = 52
HELP = {"-h", "--help"}


class BadArgument(ValueError):
    """The command line cannot be followed; the message says why, in one line."""


def asks_for_help(arguments: Sequence[str]) -> bool:
    return bool(HELP & set(arguments)) or list(arguments) == ["help"]


def refuse_flags(arguments: Sequence[str]) -> None:
    """Raises BadArgument where one is spelled as a flag."""
    for at, argument in enumerate(arguments):
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            following = [*arguments[at + 1 :], "-"][0]
            value = value if equals else "VALUE" if following.startswith("-") or "=" in following else following
            raise BadArgument(f"{argument[:80]}: arguments are key=value, as in {key.replace('-', '_')}={value}"[:200])


def unknown(key: str, keys: Collection[str]) -> str:
    """What is said of a key that is none of `keys`."""
    near = get_close_matches(key[:80], keys, n=1)
    return f"{key[:80]}: no such key; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}")


def help_lines(key: str, default: str, kind: str, meaning: str) -> Iterator[str]:
    """Of one setting."""
    said = f"  {key}={default}"
    first, *more = textwrap.wrap(f"{kind}: {meaning}".removesuffix(": "), WIDTH - COLUMN) or [""]
    yield from [f"{said:<{COLUMN}}{first}"] if len(said) < COLUMN else [said, f"{'':<{COLUMN}}{first}"]
    yield from (f"{'':<{COLUMN}}{line}" for line in more)


@dataclass(frozen=True, slots=True)
class Setting:
    """One that is read without a library."""

    kind: str
    read: Callable[[str], Any]
    """Raises ValueError."""
    meaning: str
    default: Any = None
    required: bool = False


def read(settings: Mapping[str, Setting], arguments: Sequence[str]) -> dict[str, Any]:
    """The value of every setting. Raises BadArgument with what is wrong, in one line."""
    refuse_flags(arguments)
    found = {key: setting.default for key, setting in settings.items()}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise BadArgument(f"{argument[:80]}: arguments are key=value")
        if key not in settings:
            raise BadArgument(unknown(key, settings))
        try:
            found[key] = settings[key].read(text)
        except ValueError as error:
            raise BadArgument(f"{key}: {error}") from None
    if missing := next((key for key, setting in settings.items() if setting.required and found[key] is None), None):
        raise BadArgument(f"{missing}: must be given; pass {missing}=...")
    return found


def listed(settings: Mapping[str, Setting]) -> str:
    """As `--help` lists them."""
    lines = ["settings, as key=value"]
    for key, one in settings.items():
        default = "(required)" if one.required else "null" if one.default is None else f"{one.default}"
        lines += help_lines(key, default, one.kind, one.meaning)
    return "\n".join(lines)


def text(given: str) -> str:
    if not given:
        raise ValueError("must not be empty")
    return given


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def choose(given: str) -> str:
        if given not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {given[:40]!r}")
        return given

    return choose


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number in a range."""

    def number_of(given: str) -> int:
        if not given.removeprefix("-").isdecimal() or not least <= int(given[:20]) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, got {given[:40]!r}")
        return int(given)

    return number_of


def number(least: float, most: float) -> Callable[[str], float]:
    """Reads a number in a range."""

    def number_of(given: str) -> float:
        try:
            value = float(given)
        except ValueError:
            value = float("nan")
        if not (isfinite(value) and least <= value <= most):
            raise ValueError(f"must be a number from {least:g} to {most:g}, got {given[:40]!r}")
        return value

    return number_of
