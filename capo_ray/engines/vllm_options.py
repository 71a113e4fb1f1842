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
    known = _types()
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(no_such(name, known, "vLLM's EngineArgs"))
        made[name] = _typed(name, known[name], value)
    return made


@cache
def _types() -> dict[str, Any]:
    return {field.name: field.type for field in fields(AsyncEngineArgs) if not field.name.startswith("_")}


def _typed(name: str, kind: Any, value: Any) -> Any:
    """As JSON and strictly: a list may stand for a set, but no text for a number."""
    if isinstance(kind, str):  # written as text in vLLM's source, with names that are not to be had outside of it
        return value
    for choices in (kind, *get_args(kind)):
        if isinstance(value, str) and isinstance(choices, type) and issubclass(choices, Enum):
            if value not in choices.__members__:
                raise ValueError(f"{name}: vLLM knows no {value!r}{nearest(value, choices.__members__)}")
            return choices[value]
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(f"{name}: {first_line(error)}, got {value!r}") from None
