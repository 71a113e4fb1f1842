"""What blocks of settings are made of: a field with its meaning, unit and source, and kinds that fields share.

Leaves out the blocks themselves (see `blocks`, `critic`, `method`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypedDict, TypeVar, Unpack, get_args, overload

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema

from capo_ray import extension
from capo_ray.config.fault import shown
from capo_ray.config.sensible import Sensible


class Block(Sensible):
    """Settings that stand together."""


MOST_PROCESSES = 4096
"""Of one role: no plan is made for more."""

T = TypeVar("T")


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
