"""Whether two expressions have the same value: exactly where they are rational, else to 40 of 60 digits.

With symbols they are compared at drawn points, always the same: two expressions that agree at five of them are equal.
There is no absolute tolerance: 1/52! is not 4/52!, and a value that looks like zero is looked at again with 250 digits.
Leaves out how a value is found (value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial

import mpmath

from capo_ray.tasks.answers.expression import Node, contains, symbols
from capo_ray.tasks.answers.value import DIGITS, TooLarge, Value, floating, hashed, infinity, over, value_of

_AGAIN = 250
_SAME = 40
"""Digits that have to agree."""
_POINTS = 5
_POINTS_OF_STEPS = 40
"""For floors and ceilings, which agree at many points and differ at others."""
_STEPPED = ("floor", "ceil")
_WHOLE_ONLY = ("floor", "ceil", "factorial", "binom")


def equal(one: Node, other: Node) -> bool:
    """Whether they have one value, at every point. An infinity equals itself alone."""
    if (infinite := infinity(one)) or infinity(other):
        return infinite is not None and infinite == infinity(other)
    if symbols(one) != symbols(other) and not (symbols(one) | symbols(other)):
        return False
    with mpmath.workdps(DIGITS):
        return _equal_at_points(one, other)


def _equal_at_points(one: Node, other: Node) -> bool:
    met = 0
    names = symbols(one) | symbols(other)
    stepped = contains(one, _STEPPED) or contains(other, _STEPPED)
    enough = _POINTS_OF_STEPS if stepped else _POINTS
    real = not contains(one, ("i",)) and not contains(other, ("i",))
    for at in points(names, whole=contains(one, _WHOLE_ONLY) or contains(other, _WHOLE_ONLY)):
        try:
            wanted = value_of(one, at)
        except TooLarge:
            if not names:
                return False
            continue
        try:
            there = value_of(other, at)
        except TooLarge:
            return False
        if names and real and (_complex(wanted) or _complex(there)):
            continue  # outside of what the answers are meant for
        try:
            if not same(wanted, there, partial(_both_again, one, other, at)):
                return False
        except TooLarge:
            return False
        met += 1
        if not names or met == enough:
            return True
    return met >= (enough if stepped else 2)


def _both_again(one: Node, other: Node, at: Mapping[str, Fraction]) -> tuple[Value, Value]:
    return _again(one, at), _again(other, at)


def _complex(found: Value) -> bool:
    return isinstance(found, mpmath.mpc) and bool(abs(found.imag) > abs(found) * mpmath.mpf(10) ** -_SAME)


def _again(node: Node, at: Mapping[str, Fraction]) -> Value:
    with mpmath.workdps(_AGAIN):
        found = value_of(node, at)
        if isinstance(found, Fraction) or abs(found) >= mpmath.mpf(10) ** (30 - _AGAIN):
            return found
        return mpmath.mpf(0)


def same(one: Value, other: Value, again: Callable[[], tuple[Value, Value]] | None = None) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    one, other = floating(one), floating(other)
    largest, apart = max(abs(one), abs(other)), abs(one - other)
    if apart <= largest * mpmath.mpf(10) ** -_SAME:
        return True
    if again is None or (apart > largest * mpmath.mpf(10) ** -12 and largest > mpmath.mpf(10) ** -30):
        return False
    with mpmath.workdps(_AGAIN):
        return same(*again())


def points(names: frozenset[str], *, whole: bool) -> Iterator[dict[str, Fraction]]:
    """Drawn by the names alone: of positive numbers first, then of both signs. One empty point without names."""
    if not names:
        yield {}
        return
    for trial in range(3 * _POINTS if not whole else 2 * _POINTS_OF_STEPS):
        draws = {name: hashed(f"{trial} {name}") for name in names}
        if whole:
            yield {name: Fraction(3 + int(draw * 40)) for name, draw in draws.items()}
        elif trial < 3:
            yield {name: draw * 3 + Fraction(1, 7) for name, draw in draws.items()}
        else:
            yield {name: draw * 6 - 3 for name, draw in draws.items()}


def proportional(one: Node, other: Node) -> int:
    """The sign of c where one = c * other at every point, else 0."""
    names = symbols(one) | symbols(other)
    if not names or symbols(one) != symbols(other):
        return 0
    ratios: list[Value] = []
    with mpmath.workdps(DIGITS):
        for at in points(names, whole=False):
            try:
                above, below = value_of(one, at), value_of(other, at)
                ratio = over(above, below)
            except (TooLarge, ZeroDivisionError):
                continue
            if isinstance(ratio, mpmath.mpc):
                continue
            ratios.append(ratio)
            if len(ratios) == _POINTS:
                break
        if len(ratios) < 2 or not ratios[0] or not all(same(ratios[0], ratio) for ratio in ratios[1:]):
            return 0
        return 1 if ratios[0] > 0 else -1
