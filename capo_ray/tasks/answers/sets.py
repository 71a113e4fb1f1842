"""Sets of real numbers: intervals, unions, what an inequality of one name says; and whether two are the same set.

Leaves out inequalities of several names (relations).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import mpmath

from capo_ray.tasks.answers import comparison, value
from capo_ray.tasks.answers.expression import Node
from capo_ray.tasks.answers.kinds import Answer, Items, Quantity, Reals, Span
from capo_ray.tasks.answers.layout import is_name, split_top

INFINITE = Node("constant", name="infty")
Read = Callable[[str], Answer]
_EVERYTHING = Reals((Span(Node("neg", (INFINITE,)), False, INFINITE, False),))
_NOTHING = Items((), "{}")
_NONE = re.compile(
    r"(?:the )?(?:\\emptyset|empty(?: set)?|null set|no (?:real )?(?:solutions?|values?|roots?)(?: exists?)?"
    r"|\\\{ ?\\\})",
    re.IGNORECASE,
)
_ALL = re.compile(
    r"(?:all )?(?:real numbers|reals)|\\reals|\(-\\infty ?, ?\+?\\infty ?\)|all real numbers? [a-z]", re.IGNORECASE
)


def plain_set(text: str, read: Read) -> Answer | None:
    if _NONE.fullmatch(text):
        return _NOTHING
    return _EVERYTHING if _ALL.fullmatch(text) else None


def member(text: str, read: Read) -> Answer | None:
    """x in S, {x | ...}, A union B, R without {2}."""
    if (found := re.fullmatch(r"(.{1,40}?) ?(?:\\in(?![a-z])|\bin\b) ?(.+)", text)) and is_name(found[1]):
        inner = read(found[2])
        return Reals(inner.spans, name=found[1].strip()) if isinstance(inner, Reals) else inner
    if built := re.fullmatch(r"\\\{ ?([^|:{}]{1,30}?)(?: ?\\in(?![a-z]) ?\\reals)? ?[|:] ?(.+) ?\\\}", text):
        inner = read(built[2])
        return inner if isinstance(inner, Reals) and is_name(built[1]) else None
    if without := re.fullmatch(r"(.+?) ?(?:\\setminus|\\\\|(?<=reals) ?-) ?(\\\{.+\\\})", text):
        whole, out = read(without[1]), read(without[2])
        if whole == _EVERYTHING and isinstance(out, Items) and all(isinstance(one, Quantity) for one in out.items):
            return all_but([one.node for one in out.items if isinstance(one, Quantity)])
    parts = split_top(re.sub(r"(?<=[\])}]) ?U ?(?=[\[({\\])|\bunion\b", r"\\cup ", text), r"\\cup(?![a-z])")
    if len(parts) < 2:
        return None
    spans = [_spans(read(part)) for part in parts]
    return None if None in spans else Reals(tuple(span for one in spans for span in one or ()))


def _spans(answer: Answer) -> tuple[Span, ...] | None:
    """As intervals: of an interval, a finite set, a union."""
    if isinstance(answer, Reals):
        return answer.spans
    if isinstance(answer, Items) and answer.brackets == "{}" and all(isinstance(one, Quantity) for one in answer.items):
        return tuple(Span(one.node, True, one.node, True) for one in answer.items if isinstance(one, Quantity))
    return interval(answer)


def interval(answer: Answer) -> tuple[Span, ...] | None:
    """Of two quantities in round or square brackets; else None."""
    if not isinstance(answer, Items) or answer.brackets not in ("()", "[]", "(]", "[)") or len(answer.items) != 2:
        return None
    low, high = answer.items
    if not isinstance(low, Quantity) or not isinstance(high, Quantity):
        return None
    return (Span(low.node, answer.brackets[0] == "[", high.node, answer.brackets[1] == "]"),)


def all_but(nodes: list[Node]) -> Reals | None:
    values = [(found, node) for node in nodes if (found := value.real_value(node)) is not None]
    if len(values) < len(nodes) or not nodes:
        return None
    ends = [Node("neg", (INFINITE,)), *(node for _, node in sorted(values, key=lambda one: one[0])), INFINITE]
    return Reals(tuple(Span(low, False, high, False) for low, high in pairwise(ends)))


# ---- comparing -------------------------------------------------------------------------------------------------------


def same_set(gold: Answer, found: Answer) -> bool:
    """Whether both are sets of reals, and the same one."""
    spans = [_spans_of(one) for one in (gold, found)]
    if spans[0] is None or spans[1] is None:
        return False
    merged = [_merged(one) for one in spans if one is not None]
    if None not in merged:
        return _same_spans(merged[0] or [], merged[1] or [])
    return len(spans[0]) == len(spans[1]) and all(map(_same_span, spans[0], spans[1]))


def _spans_of(answer: Answer) -> Sequence[Span] | None:
    if isinstance(answer, Reals):
        return answer.spans
    if (
        isinstance(answer, Items)
        and answer.brackets in ("{}", "")
        and all(isinstance(one, Quantity) for one in answer.items)
    ):
        return [Span(one.node, True, one.node, True) for one in answer.items if isinstance(one, Quantity)]
    return interval(answer)


def _same_span(one: Span, other: Span) -> bool:
    return (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed) and (
        comparison.equal(one.low, other.low) and comparison.equal(one.high, other.high)
    )


_Ends = tuple[value.Value, bool, value.Value, bool]


def _merged(spans: Sequence[Span]) -> list[_Ends] | None:
    """Ascending, without overlaps; intervals that touch are one. None where an end is no real number."""
    ends: list[_Ends] = []
    for span in spans:
        low, high = value.real_value(span.low), value.real_value(span.high)
        if low is None or high is None:
            return None
        low, high = value.number_of(low), value.number_of(high)
        if low > high:
            return None
        if (span.low_closed and low == -mpmath.inf) or (span.high_closed and high == mpmath.inf):
            return None
        ends.append((low, span.low_closed, high, span.high_closed))
    ends.sort(key=lambda one: (one[0], not one[1]))
    merged: list[_Ends] = []
    for low, low_closed, high, high_closed in ends:
        if merged and (low < merged[-1][2] or (_same_end(low, merged[-1][2]) and (low_closed or merged[-1][3]))):
            before = merged.pop()
            further = (
                before
                if before[2] > high or (before[2] == high and before[3])
                else (low, low_closed, high, high_closed)
            )
            merged.append((before[0], before[1], further[2], further[3]))
        else:
            merged.append((low, low_closed, high, high_closed))
    return merged


def _same_spans(gold: list[_Ends], found: list[_Ends]) -> bool:
    return len(gold) == len(found) and all(
        one[1] == other[1] and one[3] == other[3] and _same_end(one[0], other[0]) and _same_end(one[2], other[2])
        for one, other in zip(gold, found, strict=True)
    )


def _same_end(one: value.Value, other: value.Value) -> bool:
    if mpmath.inf in (abs(one), abs(other)):
        return bool(one == other)
    with mpmath.workdps(value.DIGITS):
        return comparison.same(one, other)
