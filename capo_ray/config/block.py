"""What blocks of settings are made of: a field with its meaning, unit and source, and kinds that fields share.

Leaves out the blocks themselves (see `blocks`, `critic`, `method`).
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, Unpack, get_args, overload

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema

from capo_ray import extension
from capo_ray.config.fault import shown
from capo_ray.config.sensible import Sensible

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Block(Sensible):
    """Settings that stand together."""


MOST_PROCESSES = 4096
"""Of one role: no plan is made for more."""

T = TypeVar("T")
Made = TypeVar("Made", bound="DataclassInstance")


def filled(kind: type[Made], *blocks: Block, **more: Any) -> Made:
    """What a room that knows no configuration takes of it: every field from the block that has one of its name, but
    those in `more`; the others keep the dataclass's defaults."""
    names = {field.name for field in fields(kind)} - more.keys()
    given = {name: getattr(block, name) for block in blocks for name in names & type(block).model_fields.keys()}
    return kind(**given, **more)


class Limits(TypedDict, total=False):
    """Of a number or a text."""

    gt: float
    ge: float
    lt: float
    le: float
    pattern: str


@overload
def setting(meaning: str, *, unit: str = "", source: str = "own", **limits: Unpack[Limits]) -> Any: ...
@overload
def setting(meaning: str, default: T, *, unit: str = "", source: str = "own", **limits: Unpack[Limits]) -> T: ...
def setting(meaning: str, default: Any = ..., *, unit: str = "", source: str = "own", **limits: Unpack[Limits]) -> Any:
    """A field of a block, with what docs/configuration.md says of it; required without a default.

    `unit` is that of a number, or none. `source` says where the setting, or its default, is from: a paper, or the
    library that it is handed to and its name there.
    """
    noted: dict[str, JsonValue] = {"unit": unit, "source": source}
    return Field(default, description=meaning, json_schema_extra=noted, **limits)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{shown(pattern)} is not a regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]
"""A regular expression, read before anything starts."""


def or_own(known: Any) -> tuple[AfterValidator, WithJsonSchema]:
    """For a field that takes one of the `known` names, or `module:name` of an object of the user's."""
    names = get_args(known)

    def check(name: str) -> str:
        if name not in names and not extension.is_own(name):
            raise ValueError(f"must be one of {', '.join(names)}, or module:name of your own, got {shown(name)}")
        return name

    return AfterValidator(check), WithJsonSchema({"enum": [*names, "module:name"], "type": "string"})
