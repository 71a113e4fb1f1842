"""Equations and inequalities: read, solved where that takes no algebra, and compared as relations."""

from __future__ import annotations

import re
from itertools import pairwise

from capo_ray.tasks.answers import comparison
from capo_ray.tasks.answers.expression import Node, parse, symbols
from capo_ray.tasks.answers.kinds import Answer, Named, Quantity, Reals, Relation, Span
from capo_ray.tasks.answers.layout import is_name, split_top
from capo_ray.tasks.answers.quantities import rounds_to, same_quantity
from capo_ray.tasks.answers.sets import INFINITE, Read, all_but
from capo_ray.tasks.answers.tokens import Unreadable

_SIGNS = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|=|<|>")
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


def related(text: str, read: Read) -> Answer | None:
    """Equations, inequalities, and chains of them."""
    if not _SIGNS.search(text):
        return None
    sides, ops, place = split_top(text, _SIGNS.pattern), [], 0
    for side in sides[:-1]:
        place += len(side)
        found = _SIGNS.match(text, place)
        assert found is not None
        ops.append(found[0])
        place = found.end()
    sides = [side.strip() for side in sides]
    if not ops or not all(sides):
        return None
    if set(ops) == {"="}:
        return _equation(sides, read)
    try:
        relation = Relation(tuple(ops), tuple(_side(side, read) for side in sides))
    except Unreadable:
        return None
    return _solved(relation, sides) or relation


def _side(text: str, read: Read) -> Node:
    found = read(text)
    return found.node if isinstance(found, Quantity) and not found.percent else parse(text)


def _equation(sides: list[str], read: Read) -> Answer | None:
    if is_name(sides[0]) and not re.search(r"[A-Za-z]", sides[-1]) and is_name(sides[-1]):
        return None
    try:
        nodes = tuple(parse(side) for side in (sides[0], sides[-1]))
        relation = Relation(("=",), nodes)
    except Unreadable:
        relation = None
    if not _agree([read(side) for side in sides if _constant(side)]):
        return None
    first = sides[0]
    if is_name(first) or (_constant(first) and len(sides) > 1 and _constant(sides[-1])) or len(sides) > 2:
        value = read(sides[-1])
        name = first if is_name(first) else ""
        return Named(name, value, relation if name and len(sides) == 2 else None) if name else value
    if is_name(sides[-1]) and _constant(first):
        return Named(sides[-1], read(first), relation)
    return relation or (read(sides[-1]) if _constant(sides[-1]) else None)


def _agree(constants: list[Answer]) -> bool:
    """Whether the numbers of a chain are one: 0.56 = 56 %, and 2/3 = 0.67; a chain that contradicts itself says
    nothing."""
    numbers = [one for one in constants if isinstance(one, Quantity)]
    return all(
        same_quantity(one, other) or (bool(other.decimal) and rounds_to(one, other)) for one, other in pairwise(numbers)
    )


def _constant(text: str) -> bool:
    try:
        return not symbols(parse(re.sub(r"\\(?:pct|deg|currency) ?", "", text)))
    except Unreadable:
        return False


def _solved(relation: Relation, sides: list[str]) -> Reals | None:
    """x < 4, 4 > x, 1 < x <= 6, x != 3: of one name."""
    ops, nodes = relation.ops, relation.sides
    if ops == ("\\ne",):
        place = 0 if is_name(sides[0]) else 1
        return all_but([nodes[1 - place]]) if is_name(sides[place]) else None
    rising = all(op in ("<", "\\le") for op in ops)
    if not rising:
        if not all(op in (">", "\\ge") for op in ops):
            return None
        ops, nodes, sides = ops[::-1], nodes[::-1], sides[::-1]
    if len(ops) == 2 and is_name(sides[1]) and not symbols(nodes[1]) & (symbols(nodes[0]) | symbols(nodes[2])):
        return Reals((Span(nodes[0], "e" in ops[0], nodes[2], "e" in ops[1]),), sides[1])
    if len(ops) != 1:
        return None
    if is_name(sides[0]) and not symbols(nodes[0]) & symbols(nodes[1]):
        return Reals((Span(Node("neg", (INFINITE,)), False, nodes[1], "e" in ops[0]),), sides[0], relation)
    if is_name(sides[1]) and not symbols(nodes[0]) & symbols(nodes[1]):
        return Reals((Span(nodes[0], "e" in ops[0], INFINITE, False),), sides[1], relation)
    return None


def same_relation(gold: Relation, found: Relation) -> bool:
    if len(gold.ops) == len(found.ops) == 1:
        return _single(gold, found)
    for ops, sides in ((found.ops, found.sides), (tuple(_TURNED[op] for op in found.ops[::-1]), found.sides[::-1])):
        if ops == gold.ops and all(comparison.equal(a, b) for a, b in zip(gold.sides, sides, strict=True)):
            return True
    return False


def _single(gold: Relation, found: Relation) -> bool:
    """lhs - rhs of one is a multiple of the other's: any for equations, a positive one for inequalities."""
    sign = comparison.proportional(_difference(gold), _difference(found))
    if sign == 0:
        return False
    if gold.ops[0] in ("=", "\\ne"):
        return gold.ops == found.ops
    return gold.ops[0] == (found.ops[0] if sign > 0 else _TURNED[found.ops[0]])


def _difference(relation: Relation) -> Node:
    return Node("add", (relation.sides[0], Node("neg", (relation.sides[1],))))
