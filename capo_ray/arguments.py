"""Arguments of the programs that take no configuration: `key=value`, as everywhere, and `--key value` as well.

Python's argparse with ranges and one style. Leaves out programs that take configuration (program, config).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any


class KeyValues(argparse.ArgumentParser):
    """A parser of `--key value` that takes `key=value` too, and whose help has the defaults."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_args([self._as_flag(argument) for argument in given], namespace)

    def _as_flag(self, argument: str) -> str:
        key, equals, value = argument.partition("=")
        flag = f"--{key.replace('_', '-')}"
        return f"{flag}={value}" if equals and flag in self._option_string_actions else argument

    def error(self, message: str) -> Any:
        print(f"error: {message}; {self.prog} --help has what there is", file=sys.stderr)
        raise SystemExit(2)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number in a range. Raises ArgumentTypeError."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or not least <= int(text[:20]) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text[:40]!r}")
        return int(text)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Reads a number in a range. Raises ArgumentTypeError."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"must be a number from {least:g} to {most:g}, got {text[:40]!r}")
        return value

    return read
