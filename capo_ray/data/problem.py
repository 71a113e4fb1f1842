"""From a row of a data set to a problem: columns by name, nested ones by dotted names, gold answers out of texts.

Leaves out where rows come from (read) and how problems become prompts (prompts).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from capo_ray.config.blocks import Source
from capo_ray.tasks.answers.final import last_boxed
from capo_ray.types import JsonDict


class DataError(ValueError):
    """A data set cannot be used; the message names the file, the row and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    id: str
    question: str
    answer: str
    """Empty where the row has none."""
    solution: str = ""
    system: str | None = None
    """System message of the row itself, which stands before the policy's own."""


def problem_of(record: JsonDict, where: str, name: str, data: Source) -> Problem:
    """`where` says where the row stands, `name` is its id where it brings none. Raises DataError."""
    question, system = question_of(record, where, data)
    answer = _answer(record, data, where)
    solution = _text(record, data.solution_field, f"{data.place}.solution_field", where) if data.solution_field else ""
    if data.id_field is not None:
        name = _text(record, data.id_field, f"{data.place}.id_field", where)
    return Problem(id=name, question=question, answer=_gold(answer, data, where), solution=solution, system=system)


_MISSING = ("nan", "null", "n/a", "#n/a", "<na>")
"""What programs write into a cell that is missing."""


def _answer(record: JsonDict, data: Source, where: str) -> str:
    """What the answer's column holds; empty where the cell is missing: null, NaN, or such a word."""
    value = value_of(record, data.answer_field, f"{data.place}.answer_field", where)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and math.isinf(value):
        raise DataError(f"{where}: field {data.answer_field!r} is {value}, which no answer can equal")
    text = _text(record, data.answer_field, f"{data.place}.answer_field", where)
    return "" if text.strip().lower() in _MISSING else text


def _gold(text: str, data: Source, where: str) -> str:
    """The final answer in what the answer's column holds."""
    if data.answer_boxed:
        bare = re.findall(r"\\boxed +([^\s$.,]+)", text)  # as MATH has it twice: "\\boxed 9$."
        return (last_boxed(text) or (bare or [""])[-1]).strip()
    if data.answer_pattern is not None and text:
        found = re.search(data.answer_pattern, text)
        if found is None:
            raise DataError(
                f"{where}: {data.place}.answer_pattern {data.answer_pattern!r} does not match field "
                f"{data.answer_field!r}, which ends in {text[-80:]!r}"
            )
        return (found[1] or "").strip()
    return text.strip()


def question_of(record: JsonDict, where: str, data: Source) -> tuple[str, str | None]:
    """The question, and the system message before it where the column holds messages, as verl's `prompt` does. Raises
    DataError."""
    value = value_of(record, data.question_field, f"{data.place}.question_field", where)
    if not isinstance(value, list):
        return _plain(value, data.question_field, where), None
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") for m in value):
        raise DataError(
            f"{where}: field {data.question_field!r} is a list, must be a text or messages with a role and a content"
        )
    roles = [message["role"] for message in value]
    if roles not in (["user"], ["system", "user"]):
        raise DataError(
            f"{where}: field {data.question_field!r} holds the messages {', '.join(roles) or 'of nobody'}; a prompt is "
            "one of a user, after at most one system message"
        )
    return value[-1]["content"], value[0]["content"] if len(value) > 1 else None


def _text(record: JsonDict, name: str, option: str, where: str) -> str:
    """A list, such as that of several right answers, is joined by commas."""
    value = value_of(record, name, option, where)
    if isinstance(value, list) and value:
        return ", ".join(_plain(part, name, where) for part in value)
    return _plain(value, name, where)


def _plain(value: Any, name: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "empty list" if value == [] else type(value).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise DataError(f"{where}: field {name!r} is {article} {kind}, must be a text or a number")
    return str(value)


def value_of(record: JsonDict, name: str, option: str, where: str) -> Any:
    """The column called `name`, or the one that its dots lead to."""
    if name in record:
        return record[name]
    found: Any = record
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            raise DataError(f"{where}: no field {name!r}; there are {', '.join(_names(record))}: set {option}")
        found = found[part]
    return found


def _names(record: JsonDict) -> list[str]:
    """Dotted names of what a row holds."""
    names: list[str] = []
    for name, value in sorted(record.items()):
        names += [f"{name}.{inner}" for inner in _names(value)] if isinstance(value, dict) and value else [name]
    return names
