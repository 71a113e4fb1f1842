"""Whether two quantities are equal: percent, units, and decimals that round what has none.

p % is p and p/100, never 100 p. Two decimals are equal exactly; one of six digits or more behind the point is the
fraction or root that it rounds.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath

from capo_ray.tasks.answers import comparison, value
from capo_ray.tasks.answers.expression import Node, number
from capo_ray.tasks.answers.kinds import Answer, Quantity
from capo_ray.tasks.answers.units import agree


def same_quantity(gold: Quantity, found: Quantity) -> bool:
    one, other = gold.node, found.node
    if {"cent"} in (gold.unit, found.unit) and {"dollar"} in (gold.unit, found.unit):
        one = Node("div", (one, number(100))) if gold.unit == {"cent"} else one
        other = Node("div", (other, number(100))) if found.unit == {"cent"} else other
        return comparison.equal(one, other)
    if not agree(gold.unit, found.unit):
        return False
    if _same_value(gold, found):
        return True
    if gold.percent == found.percent:
        return False
    hundredth = Node("div", (one if gold.percent else other, number(100)))
    return comparison.equal(hundredth, other if gold.percent else one)


def _same_value(gold: Quantity, found: Quantity) -> bool:
    return comparison.equal(gold.node, found.node) or (bool(gold.decimal or found.decimal) and _near(gold, found))


def _near(gold: Quantity, found: Quantity) -> bool:
    """A decimal of six digits or more behind the point is what it rounds, be it 1/3 or a root; floating-point noise
    behind the fifteenth digit is none."""
    if gold.decimal and found.decimal:
        written = found.decimal.lstrip("-+")
        noisy = _significant(found.decimal) >= 15 and _significant(gold.decimal) <= 12
        return noisy and "." in written and _apart(gold, found, 14)
    decimal, exact = (gold, found) if gold.decimal else (found, gold)
    wanted, there = value.real_value(exact.node), value.real_value(decimal.node)
    digits = len(decimal.decimal.partition(".")[2])
    if wanted is None or there is None or not mpmath.isfinite(value.number_of(wanted)):
        return False
    if _is_terminating(wanted) or digits < 6 or _significant(decimal.decimal) < 6:
        return _significant(decimal.decimal) >= 15 and digits >= 6 and _apart(gold, found, 14)
    unit = Fraction(1, 10**digits)
    with mpmath.workdps(value.DIGITS):
        off = abs(value.number_of(wanted)) - abs(value.number_of(there))
        rounded = abs(off) * 2 <= value.number_of(unit)
        cut = digits >= 8 and 0 <= off < value.number_of(unit)
        return (rounded or cut or (_significant(decimal.decimal) >= 15 and _apart(gold, found, 14))) and (
            wanted > 0
        ) == (there > 0)


def _is_terminating(number: value.Value) -> bool:
    """Whether a rational number has a finite decimal, which is then written in full."""
    if not isinstance(number, Fraction):
        return False
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1 and number.denominator < 10**12


def _significant(decimal: str) -> int:
    return len(decimal.replace(".", "").lstrip("-+0"))


def _apart(one: Quantity, other: Quantity, digits: int) -> bool:
    a, b = value.real_value(one.node), value.real_value(other.node)
    return (
        a is not None
        and b is not None
        and abs(value.number_of(a) - value.number_of(b)) <= abs(value.number_of(a)) * mpmath.mpf(10) ** -digits
    )


def rounds_to(exact: Answer, rounded: Answer) -> bool:
    """Whether the second is the first to as many digits as it has."""
    if not isinstance(exact, Quantity) or not isinstance(rounded, Quantity):
        return False
    wanted, there = value.real_value(exact.node), value.real_value(rounded.node)
    digits = len(rounded.decimal.partition(".")[2])
    if wanted is None or there is None:
        return False
    scale = 100 if exact.percent and not rounded.percent and rounded.decimal and abs(there) < 1 else 1
    return bool(abs(value.number_of(wanted) / scale - value.number_of(there)) * 2 <= mpmath.mpf(10) ** -digits)
