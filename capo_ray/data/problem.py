"""From a row of a data set to a problem: columns by name, nested ones by dotted names, gold answers out of texts.

Leaves out where rows come from (read) and how problems become prompts (prompts).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
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
    """Empty where the row has none; so is the question."""
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
        if not name:
            raise DataError(f"{where}: field {data.id_field!r} is empty; set {data.place}.id_field=null")
    return Problem(id=name, question=question, answer=_gold(answer, data, where), solution=solution, system=system)


_MISSING = ("nan", "null", "n/a", "#n/a", "<na>")
"""What programs write into a cell that is missing."""


def _answer(record: JsonDict, data: Source, where: str) -> str:
    """What the answer's column holds; empty where the cell is missing: null, NaN, or such a word."""
    value = value_of(record, data.answer_field, f"{data.place}.answer_field", where)
    if _is_missing(value):
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
    name = data.question_field
    value = value_of(record, name, f"{data.place}.question_field", where)
    if _is_missing(value):
        return "", None
    if not isinstance(value, list):
        return text if (text := _plain(value, name, where)).strip() else "", None
    if not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str) for m in value
    ):
        raise DataError(f"{where}: field {name!r} is a list, must be a text or messages with a role and a content")
    roles = [message["role"] for message in value]
    if roles not in (["user"], ["system", "user"]):
        raise DataError(
            f"{where}: field {name!r} holds the messages {listed(roles) or 'of nobody'}; a prompt is one of a user, "
            "after at most one system message"
        )
    *before, question = (_whole(message["content"], name, where) for message in value)
    return question if question.strip() else "", before[0] if before else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def why_unanswered(data: Source) -> str:
    """What to do where no row of a set has an answer."""
    column = f"column {data.answer_field!r}" if data.answer_field else "the answer's column"
    if data.answer_boxed:
        boxed = f"{data.place}.answer_boxed=true takes the last \\boxed{{}} of {column}"
        return f"{boxed}, and no row has one: set it to false"
    if data.answer_pattern is not None:
        return f"the group of {data.place}.answer_pattern {data.answer_pattern!r} is empty wherever it matches"
    return f"{column} is empty in every row. Set {data.place}.answer_field"


def _text(record: JsonDict, name: str | None, option: str, where: str) -> str:
    """A list, such as that of several right answers, is joined by commas."""
    value = value_of(record, name, option, where)
    if _is_missing(value):
        return ""
    if isinstance(value, list) and value:
        return ", ".join(_plain(part, name, where) for part in value)
    return _plain(value, name, where)


def _plain(value: Any, name: str | None, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        kind = "empty list" if value == [] else "null" if value is None else type(value).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise DataError(f"{where}: field {name!r} is {article} {kind}, must be a text or a number")
    return _whole(str(value), name, where)


def _whole(text: str, name: str | None, where: str) -> str:
    """Half of a character, as JSON can have it, is no text that a tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{where}: field {name!r} holds {half}, half of a character (a lone surrogate)") from None
    return text


def value_of(record: JsonDict, name: str | None, option: str, where: str) -> Any:
    """The column called `name`, or the one that its dots lead to."""
    if name in record:
        return record[name]
    found: Any = record
    for part in (name or "").split("."):
        if not isinstance(found, dict) or part not in found:
            raise DataError(f"{where}: no field {name!r}; there are {listed(names_in(record))}: set {option}")
        found = found[part]
    return found


DEPTH, MOST_NAMES, LONGEST_NAME = 3, 20, 60


def names_in(record: JsonDict, depth: int = DEPTH) -> list[str]:
    """Dotted names of what a row holds, down to a depth at which nobody looks for columns."""
    names: list[str] = []
    for name, value in sorted(record.items(), key=lambda item: str(item[0])):
        inner = names_in(value, depth - 1) if depth > 1 and isinstance(value, dict) else []
        names += [f"{name}.{one}" for one in inner] or [str(name)]
    return names


def listed(names: Sequence[str]) -> str:
    """Names in a message: on one line, and no more than can be read."""
    said = [name if name.isprintable() and len(name) <= LONGEST_NAME else repr(name[:LONGEST_NAME]) for name in names]
    return ", ".join(said[:MOST_NAMES]) + (f", ... ({len(said)} of them)" if len(said) > MOST_NAMES else "")
