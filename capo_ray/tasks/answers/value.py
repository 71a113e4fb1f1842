"""The value of an expression at a point of its symbols: exact where it is rational, else to 60 digits.

Everything has a bound, so nothing here hangs: what grows out of it is `TooLarge`. Leaves out parsing (expression) and
comparing (comparison).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from capo_ray.tasks.answers.expression import Node, symbols

DIGITS = 60
_MOST_BITS = 20_000
"""Of an exact number; beyond that it is a floating one."""
_LARGEST_LOG = 1e7
"""Natural logarithm of the largest power that is taken."""
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


def floating(value: Value) -> Value:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _both(a: Value, b: Value) -> tuple[Value, Value]:
    return (a, b) if isinstance(a, Fraction) and isinstance(b, Fraction) else (floating(a), floating(b))


def _plus(a: Value, b: Value) -> Value:
    a, b = _both(a, b)
    return _bounded(a + b)


def _times(a: Value, b: Value) -> Value:
    a, b = _both(a, b)
    return _bounded(a * b)


def over(a: Value, b: Value) -> Value:
    a, b = _both(a, b)
    return _bounded(a / b)


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        return floating(value)
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
    base, exponent = floating(base), floating(exponent)
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
    value = floating(value)
    if value == 0:
        raise TooLarge("the logarithm of zero")
    return mpmath.log(value) if base is None else mpmath.log(value) / mpmath.log(floating(base))


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= 2000:
        return Fraction(math.factorial(int(value)))
    if abs(value) > 1e5:
        raise TooLarge("a factorial out of bounds")
    return mpmath.factorial(floating(value))


def _binomial(n: Value, k: Value) -> Value:
    if all(isinstance(one, Fraction) and one.denominator == 1 and 0 <= one <= 2000 for one in (n, k)):
        return Fraction(math.comb(int(n), int(k)))
    if max(abs(n), abs(k)) > 1e5:
        raise TooLarge("a binomial out of bounds")
    return mpmath.binomial(floating(n), floating(k))


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
    number = floating(hashed("call " + name))
    if abs(argument) > 1e6:
        raise TooLarge("an argument out of bounds")
    return mpmath.sin(number * floating(argument) + 1) + number


def _plain(function: Callable[[Any], Any]) -> Callable[[Value], Value]:
    def call(value: Value) -> Value:
        value = floating(value)
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
    "div": over,
    "pow": _power,
}


def hashed(text: str) -> Fraction:
    """In (0, 1)."""
    return Fraction(1 + int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:2], "big"), 65_539)


def infinity(node: Node) -> int | None:
    """1 or -1 for plus and minus infinity, else None."""
    if node.op == "neg" and (inner := infinity(node.parts[0])):
        return -inner
    return 1 if node.op == "constant" and node.name == "infty" else None


def real_value(node: Node) -> Value | None:
    """Of a number without symbols; an infinity is a float. None where there is no real value."""
    if infinite := infinity(node):
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
        return floating(found)
