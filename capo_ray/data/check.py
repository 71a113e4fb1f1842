"""What is in a data set: counts, lengths, duplicates, overlaps with evaluation sets, rows that a run would refuse.

Pure figures over rows that were read; nothing is mended. Leaves out reading (read) and showing (__main__).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from capo_ray.data.problem import DataError, Problem
from capo_ray.data.prompts import same_question

PERCENTILES = (50, 90, 99)


@dataclass(slots=True, kw_only=True)
class Found:
    """The rows of a data set, sorted by what a run would make of them."""

    problems: list[Problem] = field(default_factory=list)
    """With an answer and an id of their own."""
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Kind of fault -> what is said of each such row. One of them stops a run."""
    unanswered: list[str] = field(default_factory=list)
    """Ids of problems without an answer, which a run leaves out."""
    unasked: list[str] = field(default_factory=list)
    """Ids of rows without a question, which a run leaves out too."""
    num_rows: int = 0


def sort_rows(rows: Iterable[Problem | DataError]) -> Found:
    found, seen = Found(), set()
    for row in rows:
        found.num_rows += 1
        if isinstance(row, DataError):
            found.refused[_general(str(row).partition(": ")[2])].append(str(row))
        elif row.id in seen:
            kind = "an id that an earlier row has"
            found.refused[kind].append(f"{row.id}: {kind}; set data.id_field=null")
        elif not row.question:
            found.unasked.append(row.id)
        elif not row.answer:
            found.unanswered.append(row.id)
        else:
            seen.add(row.id)
            found.problems.append(row)
    return found


def _general(reason: str) -> str:
    """Without what is of one row alone, so that like faults are counted together."""
    for mark in (", which ends in ", " (", "; there are "):
        reason = reason.split(mark)[0]
    return reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of one column, in one unit."""

    least: int
    percentiles: dict[int, int]
    most: int
    mean: float


def lengths_of(values: Sequence[int]) -> Lengths | None:
    """None where there is nothing to measure. A percentile is the least length that so many percent do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return Lengths(
        least=ordered[0],
        percentiles={p: ordered[-(-p * len(ordered) // 100) - 1] for p in PERCENTILES},
        most=ordered[-1],
        mean=sum(ordered) / len(ordered),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Problems whose question an earlier one has, up to white space and capitals."""

    repeated: int
    questions: int
    """Questions that stand more than once."""
    contradictions: tuple[tuple[str, ...], ...]
    """Ids of problems with one question and different answers."""


def duplicates_of(problems: Sequence[Problem]) -> Duplicates:
    by_question: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_question[same_question(problem.question)].append(problem)
    several = [same for same in by_question.values() if len(same) > 1]
    differ = [same for same in several if len({problem.answer for problem in same}) > 1]
    return Duplicates(
        repeated=sum(len(same) - 1 for same in several),
        questions=len(several),
        contradictions=tuple(tuple(problem.id for problem in same) for same in differ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Problems of the data whose question is in an evaluation set too, up to white space and capitals."""

    name: str
    size: int
    met: tuple[str, ...]
    """Ids."""


def overlap(problems: Sequence[Problem], name: str, questions: Sequence[str]) -> Overlap:
    there = {same_question(question) for question in questions}
    met = tuple(problem.id for problem in problems if same_question(problem.question) in there)
    return Overlap(name=name, size=len(questions), met=met)


def too_long(problems: Sequence[Problem], lengths: Sequence[int], most: int) -> list[tuple[str, int]]:
    """(id, length) of the problems whose prompts a run leaves out, longest first."""
    over = [(problem.id, n) for problem, n in zip(problems, lengths, strict=True) if n > most]
    return sorted(over, key=lambda one: -one[1])


def most_common(answers: Iterable[str], number: int = 5) -> list[tuple[str, int]]:
    return Counter(answers).most_common(number)
