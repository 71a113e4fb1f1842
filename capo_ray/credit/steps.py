"""From a response's text to its steps, and from steps to tokens (docs/algorithm.md sections 1 and 2).

A step's span holds the delimiter after it, so spans tile the text. A segment of white space alone is no step: it joins
the step before it, leading ones join the first. A token belongs to the step that holds its first character; tokens that
start at the end of the text have no character: they are the special tokens at the end and belong to no step.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from capo_ray.types import Step

SegmenterKind = Literal["blank_line", "line", "regex"]

BLANK_LINE = re.compile(r"\n\n")
LINE = re.compile(r"\n")


class Segment(NamedTuple):
    """Where a step stands in its text, in code points."""

    start: int
    shown_end: int
    """Where its trailing delimiter, or the white space that joined it, begins."""
    end: int


def delimiter(kind: SegmenterKind = "blank_line", pattern: str | None = None) -> re.Pattern[str]:
    """What stands between two steps. `pattern` is for `regex` alone; it may match nothing wide, as `(?=Step \\d)`."""
    if kind != "regex":
        if pattern is not None:
            raise ValueError(f"a segmenter pattern goes with the segmenter regex, got {kind!r}")
        return {"blank_line": BLANK_LINE, "line": LINE}[kind]
    if not pattern:
        raise ValueError("the segmenter regex needs a pattern")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the segmenter pattern {pattern!r} is no regular expression: {error}") from error


def segment(text: str, between: re.Pattern[str] = BLANK_LINE) -> list[Segment]:
    """Cut `text` at every match of `between`; at least one segment, and together they tile the text."""
    segments: list[Segment] = []
    start = 0
    for shown_end, end in [*(match.span() for match in between.finditer(text)), (len(text), len(text))]:
        if text[start:shown_end].strip():
            segments.append(Segment(segments[-1].end if segments else 0, shown_end, end))
        elif segments:
            segments[-1] = segments[-1]._replace(end=end)
        start = end
    return segments or [Segment(0, 0, len(text))]


def steps_of(text: str, char_ends: Sequence[int], between: re.Pattern[str] = BLANK_LINE) -> tuple[Step, ...]:
    """The steps of a response; `char_ends` says per token where the next one starts (see credit.tokens)."""

    def first_token(at: int) -> int:  # the first that starts at `at` or behind it; token t starts at char_ends[t - 1]
        return bisect_left(char_ends, at) + 1 if at else 0

    return tuple(
        Step(text=text[start:shown_end], chars=(start, end), tokens=(first_token(start), first_token(end)))
        for start, shown_end, end in segment(text, between)
    )
