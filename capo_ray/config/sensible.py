"""What every field of every block refuses, whatever else it wants: the values that mean nothing to anybody.

A yes or no for a number, numbers that are not finite or beyond all use, texts that are empty, endless or no text.
Leaves out a field's own range, which stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MOST = 1e15
"""No count of tokens, weights or bytes is larger, nor any rate, weight or time."""
LONGEST = 100_000
"""Characters of a text: a long chat template has some thousands."""
UNUSUAL_RATE = 1e-2
"""No published run of AdamW on a language model has a rate near this."""


class Sensible(BaseModel):
    """A block of settings; unknown keys are refused, and nothing can be changed once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_nonsense(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = kinds_of(cls, str(info.field_name))
        if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
            return value  # whose own fields are looked at
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bool) and not kinds & {bool, Any, dict}:
                wanted = "a number" if kinds & {int, float} else "a text"
                raise ValueError(f"must be {wanted}, got {str(one).lower()}")
        for text in texts_in(value):
            if fault := _fault_of(text):
                raise ValueError(f"must be a text: it {fault}")
        if value == "" and str in kinds:
            raise ValueError("must not be empty; leave it out, or null where there is to be none")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_endless_number(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and (not math.isfinite(number) or abs(number) > MOST):
                raise ValueError(f"must be a number that means something, at most {MOST:g}")
        return value


@lru_cache(maxsize=1024)
def kinds_of(block: type[BaseModel], name: str) -> set[Any]:
    """The plain types that a field may have."""
    return set(_leaves(block.model_fields[name].annotation))


def _leaves(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _leaves(inner) if not isinstance(inner, str | int) else (type(inner),)
    if get_args(annotation) and isinstance(origin := getattr(annotation, "__origin__", None), type):
        yield origin


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def _fault_of(text: str) -> str:
    if len(text) > LONGEST:
        return f"has {len(text):,} characters, more than {LONGEST:,}"
    if "\0" in text:
        return "holds a zero byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds bytes that are no UTF-8"
    return ""


def unusual_rate(rate: float) -> str:
    """A warning, or nothing."""
    if rate <= UNUSUAL_RATE:
        return ""
    return f"learning_rate {rate:g} is far above what anybody trains a language model with (1e-8 to 1e-3): a typo?"
