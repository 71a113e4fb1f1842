"""The kinds of answers (docs/equality.md). Leaves out how they are read (reading) and compared (equality)."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.tasks.answers.expression import Node


@dataclass(frozen=True, slots=True)
class Quantity:
    node: Node
    percent: bool = False
    unit: frozenset[str] = frozenset()
    decimal: str = ""
    """As it was written, where it is a bare decimal number."""


@dataclass(frozen=True, slots=True)
class Based:
    """A whole number written in another base than ten, by its digits."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Items:
    """`brackets` is "" for a bare list, "{}" for a set, else the two brackets of a tuple or an interval."""

    items: tuple[Answer, ...]
    brackets: str = ""
    labelled: bool = False
    """A list of words, whose order is part of the answer."""
    named: bool = False
    """Every item is name = value."""


@dataclass(frozen=True, slots=True)
class Span:
    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Reals:
    """A union of intervals, with the inequality that it was written as, maybe."""

    spans: tuple[Span, ...]
    name: str = ""
    relation: Relation | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality, or a chain of them."""

    ops: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """name = value."""

    name: str
    value: Answer
    relation: Relation | None = None


@dataclass(frozen=True, slots=True)
class About:
    """Several spellings of one value: 2/3 and 0.67 of "2/3, about 0.67"."""

    values: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    parts: tuple[Answer, ...]
    half: str = ""
    """am or pm of a time of day."""


@dataclass(frozen=True, slots=True)
class Words:
    """Small letters and digits alone, without spaces."""

    text: str


@dataclass(frozen=True, slots=True)
class Spelling:
    """What is none of these: compared as it is written, without spaces."""

    text: str


Answer = Quantity | Based | Items | Reals | Relation | Named | About | Matrix | Ratio | Words | Spelling
