"""Options of vLLM's engines by vLLM's own names: which there are, of what type, and a value as that type.

What vLLM is asked is its class EngineArgs, whose fields carry types. Leaves out the options that are not to be handed
on (config.library).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs

from capo_ray.engines.library_faults import first_line, nearest, no_such


def as_vllm_takes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Each option as a value of its field's type. Raises ValueError at the first that vLLM has not or not so."""
    known = known_options()
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(no_such(name, known, "vLLM's EngineArgs"))
        made[name] = _typed(name, known[name], value)
    return made


@cache
def known_options() -> dict[str, Any]:
    """Name -> type of each."""
    return {field.name: field.type for field in fields(AsyncEngineArgs) if not field.name.startswith("_")}


def _typed(name: str, kind: Any, value: Any) -> Any:
    """As JSON and strictly: a list may stand for a set, but no text for a number."""
    if isinstance(kind, str):  # written as text in vLLM's source, with names that are not to be had outside of it
        return value
    names: dict[str, Any] = {}
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, Enum):
            names |= part.__members__
    if isinstance(value, str) and value in names:
        return names[value]
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        if names and isinstance(value, str):
            raise ValueError(f"{name}: vLLM knows no {value!r}{nearest(value, names)}") from None
        raise ValueError(f"{name}: {first_line(error)}, got {value!r}") from None
