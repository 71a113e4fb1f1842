"""Columns under their usual names: which of a file's columns are question, answer and solution where nobody says so.

The first row decides for the whole set. What could be one or the other is refused, with the columns that there are.
Leaves out what a column's value means (problem).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from capo_ray.config.blocks import Source
from capo_ray.data.problem import DataError, listed, names_in, value_of
from capo_ray.types import JsonDict

QUESTIONS = ("question", "problem", "prompt", "input", "query", "instruction", "q")
ANSWERS = (
    "answer",
    "ground_truth",
    "final_answer",
    "gold",
    "gold_answer",
    "expected_answer",
    "target",
    "label",
    "output",
    "a",
)
SOLUTIONS = ("solution", "worked_solution", "reference_solution", "reasoning", "rationale", "explanation", "cot")
GSM8K = r"####\s*(.+)"
LONGEST = 200
"""Characters of what is taken for an answer though its column is that of solutions."""

S = TypeVar("S", bound=Source)


def named(data: S, record: JsonDict, where: str) -> S:
    """`data` with the columns that it does not name, as the row `record` has them. Raises DataError."""
    if data.question_field is not None and data.answer_field is not None:
        return data
    taken = {name for name in (data.question_field, data.answer_field, data.solution_field) if name}
    question = data.question_field or _only(_found(record, QUESTIONS, taken), record, data, where, "question")
    solutions = (data.solution_field,) if data.solution_field else _found(record, SOLUTIONS, {*taken, question})
    answer, marks = data.answer_field, {}
    if answer is None:
        answers = _found(record, ANSWERS, {*taken, question}) or solutions  # a worked solution says its answer
        answer = _only(answers, record, data, where, "answer")
        marks = _marks(data, record, answer, where, worked=answer in solutions)
    solution = solutions[0] if solutions else answer
    shown = solution if solution != answer or marks else None
    return data.model_copy(
        update={"question_field": question, "answer_field": answer, "solution_field": shown, **marks}
    )


def _marks(data: Source, record: JsonDict, answer: str, where: str, *, worked: bool) -> dict[str, Any]:
    """Where in the answer's column the final answer stands, as the first row has it."""
    text = value_of(record, answer, f"{data.place}.answer_field", where)
    if data.answer_boxed or data.answer_pattern or not isinstance(text, str):
        return {}
    if "\\boxed" in text:
        return {"answer_boxed": True}
    if "####" in text:
        return {"answer_pattern": GSM8K}
    if worked and (len(text) > LONGEST or "\n" in text.strip()):
        raise DataError(
            f"{where}: field {answer!r} is a worked solution without a marked answer (\\boxed{{...}} or #### ...); set "
            f"{data.place}.answer_field to the answer's column, or {data.place}.answer_pattern to where it stands"
        )
    return {}


def _found(record: JsonDict, names: Sequence[str], taken: Collection[str]) -> tuple[str, ...]:
    """The columns with one of these names, capitals aside, in the order of `names`; those inside others only where none
    stands by itself."""
    for columns in (record, names_in(record)):
        by_name = {column.rpartition(".")[2].casefold(): column for column in columns if column not in taken}
        if found := tuple(by_name[name] for name in names if name in by_name):
            return found
    return ()


def _only(found: Sequence[str], record: JsonDict, data: Source, where: str, what: str) -> str:
    if len(found) == 1:
        return found[0]
    said = f"{listed(found)} could each be the {what}" if found else f"no column has a usual name for the {what}"
    raise DataError(f"{where}: {said}; there are {listed(names_in(record))}: set {data.place}.{what}_field")
