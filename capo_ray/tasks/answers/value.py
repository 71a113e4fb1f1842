"""Whether two expressions have the same value: exactly where they are rational, else to 40 of 60 digits.

With symbols they are compared at drawn points, always the same: two expressions that agree at five of them are equal.
There is no absolute tolerance: 1/52! is not 4/52!, and a value that looks like zero is looked at again with 250 digits.
Everything has a bound, so nothing here hangs: what grows out of it is `TooLarge`. Leaves out parsing (expression).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import mpmath

from capo_ray.tasks.answers.expression import Node, contains, symbols

DIGITS = 60
_AGAIN = 250
_SAME = 40
"""Digits that have to agree."""
_MOST_BITS = 20_000
"""Of an exact number; beyond that it is a floating one."""
_LARGEST_LOG = 1e7
"""Natural logarithm of the largest power that is taken."""
_POINTS = 5
_POINTS_OF_STEPS = 40
"""For floors and ceilings, which agree at many points and differ at others."""
_STEPPED = ("floor", "ceil")
_WHOLE_ONLY = ("floor", "ceil", "factorial", "binom")
Value = Any
"""Fraction where it is known exactly, else mpmath's mpf or mpc."""


class TooLarge(ArithmeticError):
    """No value: not defined, or too large to be looked at."""


def value_of(node: Node, at: Mapping[str, Fraction], *, in_degrees: bool = False) -> Value:
    """At a point of its symbols. Raises TooLarge where there is none."""
    try:
        return _value(node, at, in_degrees)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, mpmath.mp.NoConvergence) as error:
        raise TooLarge(str(error)) from None


def _value(node: Node, at: Mapping[str, Fraction], angle: bool) -> Value:
    op = node.op
    if op == "number":
        return node.value
    if op == "symbol":
        return at[node.name]
    if op == "constant":
        if node.name == "infty":
            raise TooLarge("infinity")
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[node.name]
    if op == "call_known":
        trigonometric = node.name in _TRIGONOMETRIC
        return _KNOWN[node.name](*(_value(part, at, trigonometric) for part in node.parts))
    parts = [_value(part, at, angle) for part in node.parts]
    if op == "degrees":
        return parts[0] if not angle else _times(parts[0], mpmath.pi / 180)
    if op == "call":
        return _unknown(node.name, parts[0])
    return _OPS[op](*parts)


def _float(value: Value) -> Value:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _both(a: Value, b: Value) -> tuple[Value, Value]:
    return (a, b) if isinstance(a, Fraction) and isinstance(b, Fraction) else (_float(a), _float(b))


def _plus(a: Value, b: Value) -> Value:
    a, b = _both(a, b)
    return _bounded(a + b)


def _times(a: Value, b: Value) -> Value:
    a, b = _both(a, b)
    return _bounded(a * b)


def _over(a: Value, b: Value) -> Value:
    a, b = _both(a, b)
    return _bounded(a / b)


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        return _float(value)
    return value


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if base == 0 and exponent < 0:
            raise TooLarge("division by zero")
        whole = exponent.denominator == 1
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base in (0, 1) or (whole and abs(exponent) * bits <= _MOST_BITS):
            return base**exponent if whole else base
        if (root := _exact_root(base, exponent)) is not None:
            return root
    base, exponent = _float(base), _float(exponent)
    if abs(exponent) > _LARGEST_LOG or (base != 0 and abs(mpmath.log(abs(base)) * exponent) > _LARGEST_LOG):
        raise TooLarge("a power out of bounds")
    return mpmath.power(base, exponent)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """(9/4)^(1/2) and the like, of numbers that are not negative."""
    if base < 0 or exponent.denominator > 64 or abs(exponent.numerator) > 64:
        return None
    roots = [_whole_root(part, exponent.denominator) for part in (base.numerator, base.denominator)]
    if None in roots:
        return None
    return Fraction(roots[0] or 0, roots[1] or 1) ** exponent.numerator


def _whole_root(value: int, degree: int) -> int | None:
    if value.bit_length() > 4000:
        return None
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**degree < value else (low, middle)
    return low if low**degree == value else None


def _root(value: Value, degree: Value) -> Value:
    if isinstance(degree, Fraction) and degree.denominator == 1 and degree.numerator % 2 and _real_negative(value):
        return -_root(-value, degree)  # an odd root of a negative number is the real one
    return _power(value, 1 / degree)


def _real_negative(value: Value) -> bool:
    return not isinstance(value, mpmath.mpc) and bool(value < 0)


def _log(value: Value, base: Value | None = None) -> Value:
    value = _float(value)
    if value == 0:
        raise TooLarge("the logarithm of zero")
    return mpmath.log(value) if base is None else mpmath.log(value) / mpmath.log(_float(base))


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= 2000:
        return Fraction(math.factorial(int(value)))
    if abs(value) > 1e5:
        raise TooLarge("a factorial out of bounds")
    return mpmath.factorial(_float(value))


def _binomial(n: Value, k: Value) -> Value:
    if all(isinstance(one, Fraction) and one.denominator == 1 and 0 <= one <= 2000 for one in (n, k)):
        return Fraction(math.comb(int(n), int(k)))
    if max(abs(n), abs(k)) > 1e5:
        raise TooLarge("a binomial out of bounds")
    return mpmath.binomial(_float(n), _float(k))


def _rounded(down: bool) -> Callable[[Value], Value]:
    def rounded(value: Value) -> Value:
        if isinstance(value, Fraction):
            return Fraction(math.floor(value) if down else math.ceil(value))
        if isinstance(value, mpmath.mpc) or abs(value) > 1e15:
            raise TooLarge("a floor out of bounds")
        return Fraction(int(mpmath.floor(value) if down else mpmath.ceil(value)))

    return rounded


def _exp(value: Value) -> Value:
    return _power(+mpmath.e, value)


def _unknown(name: str, argument: Value) -> Value:
    """A smooth function of which nothing is known but its name."""
    number = _float(_hashed("call " + name))
    if abs(argument) > 1e6:
        raise TooLarge("an argument out of bounds")
    return mpmath.sin(number * _float(argument) + 1) + number


def _plain(function: Callable[[Any], Any]) -> Callable[[Value], Value]:
    def call(value: Value) -> Value:
        value = _float(value)
        if abs(value) > 1e15:
            raise TooLarge("an argument out of bounds")
        return function(value)

    return call


_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_KNOWN: dict[str, Callable[..., Value]] = {
    **{name: _plain(getattr(mpmath, name)) for name in _TRIGONOMETRIC},
    **{name: _plain(getattr(mpmath, name)) for name in ("sinh", "cosh", "tanh", "coth")},
    **{"arc" + name: _plain(getattr(mpmath, "a" + name)) for name in _TRIGONOMETRIC},
    "abs": abs,
    "ln": _log,
    "log": _log,
    "lg": lambda value: _log(value, Fraction(10)),
    "exp": _exp,
    "root": _root,
    "factorial": _factorial,
    "binom": _binomial,
    "floor": _rounded(True),
    "ceil": _rounded(False),
}
_OPS: dict[str, Callable[..., Value]] = {
    "add": _plus,
    "neg": lambda value: -value,
    "mul": _times,
    "div": _over,
    "pow": _power,
}


# ---- comparing -------------------------------------------------------------------------------------------------------


def equal(one: Node, other: Node) -> bool:
    """Whether they have one value, at every point. An infinity equals itself alone."""
    if (infinite := _infinity(one)) or _infinity(other):
        return infinite is not None and infinite == _infinity(other)
    if symbols(one) != symbols(other) and not (symbols(one) | symbols(other)):
        return False
    with mpmath.workdps(DIGITS):
        return _equal_at_points(one, other)


def _infinity(node: Node) -> int | None:
    """1 or -1 for plus and minus infinity, else None."""
    if node.op == "neg" and (inner := _infinity(node.parts[0])):
        return -inner
    return 1 if node.op == "constant" and node.name == "infty" else None


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
    one, other = _float(one), _float(other)
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
        draws = {name: _hashed(f"{trial} {name}") for name in names}
        if whole:
            yield {name: Fraction(3 + int(draw * 40)) for name, draw in draws.items()}
        elif trial < 3:
            yield {name: draw * 3 + Fraction(1, 7) for name, draw in draws.items()}
        else:
            yield {name: draw * 6 - 3 for name, draw in draws.items()}


def _hashed(text: str) -> Fraction:
    """In (0, 1)."""
    return Fraction(1 + int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:2], "big"), 65_539)


def real_value(node: Node) -> Value | None:
    """Of a number without symbols; an infinity is a float. None where there is no real value."""
    if infinite := _infinity(node):
        return mpmath.inf * infinite
    if symbols(node):
        return None
    with mpmath.workdps(DIGITS):
        try:
            found = value_of(node, {})
        except TooLarge:
            return None
        return None if isinstance(found, mpmath.mpc) else found


def number_of(found: Value) -> Value:
    """A real value as a floating number, to compare with one."""
    with mpmath.workdps(DIGITS):
        return _float(found)


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
                ratio = _over(above, below)
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
