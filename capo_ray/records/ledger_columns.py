"""The columns of a ledger's files, and whether a row that was read has what its column promises.

Leaves out writing and reading them (see `ledger`). Needs pyarrow for the schemas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capo_ray.types import JsonDict

if TYPE_CHECKING:
    import pyarrow

CRITIQUES, RESPONSES = "critiques", "responses"
PROBLEM = ("question", "gold", "solution")
"""Columns that are equal in all responses to one prompt; the file holds each value once."""
_TEXTS = {
    CRITIQUES: ("prompt_id", "prompt_hash", "critic", "outcome", "text"),
    RESPONSES: ("prompt_id", "answer", "finish", "text", *PROBLEM),
}
_NUMBERS = {
    CRITIQUES: ("step", "response", "critique", "num_dropped", "tokens"),
    RESPONSES: ("step", "response", "num_tokens", "num_critiques"),
}
_LISTS = {CRITIQUES: ("wrong_steps",), RESPONSES: ("char_ends", "versions")}


def schemas() -> dict[str, pyarrow.Schema]:
    import pyarrow as pa

    name, ints = pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.int32())
    spans = pa.list_(ints)
    key = [("step", pa.int32()), ("prompt_id", name), ("response", pa.int32())]
    critique = [
        ("critique", pa.int32()),
        ("prompt_hash", pa.string()),
        ("critic", name),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
        ("outcome", name),
        ("wrong_steps", ints),
        ("says_correct", pa.bool_()),
        ("num_dropped", pa.int32()),
        ("tokens", pa.int32()),
        ("from_cache", pa.bool_()),
        ("text", pa.string()),
    ]
    response = [
        ("answer", name),
        ("extracted", pa.string()),
        ("reason", name),
        ("finish", name),
        ("versions", ints),
        ("num_tokens", pa.int32()),
        ("num_critiques", pa.int32()),
        ("spare", pa.bool_()),
        ("step_chars", spans),
        ("step_tokens", spans),
        ("steps_right", pa.list_(pa.bool_())),
        ("char_ends", ints),
        ("text", pa.string()),
        *((field, name) for field in PROBLEM),
    ]
    return {CRITIQUES: pa.schema([*key, *critique]), RESPONSES: pa.schema([*key, *response])}


def check_row(row: JsonDict, kind: str) -> None:
    """Raises ValueError where a value of a row is not of its column's kind, as in a file that something else wrote."""
    odd = [name for name in _TEXTS[kind] if not isinstance(row[name], str)]
    odd += [name for name in _NUMBERS[kind] if not _is_number(row[name])]
    odd += [name for name in _LISTS[kind] if not isinstance(row[name], list) or not all(map(_is_number, row[name]))]
    if odd:
        raise ValueError(f"{odd[0]} is {str(row[odd[0]])[:60]!r} in a row")


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0
