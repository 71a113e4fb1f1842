"""Options of DeepSpeed by its own names: which its configuration reads, and of what type.

DeepSpeed's top level is no class with fields: it reads a dictionary key by key, with a default for most. So it is given
one that writes down what it is asked for. Blocks inside are classes of pydantic, which refuse by themselves, or are
read in the same way. Leaves out the options that are not to be handed on (config.library).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from capo_ray.engines.library_faults import first_line, no_such

LIBRARY = "DeepSpeed"


class _Watched(dict[str, Any]):
    """Remembers with which default each key was asked for."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__({name: _Watched(value) if isinstance(value, dict) else value for name, value in given.items()})
        self.read: dict[str, Any] = {}

    def __copy__(self) -> _Watched:
        return self

    def keys(self) -> Any:
        return self  # where somebody looks whether a key is among them

    def get(self, key: str, default: Any = None) -> Any:
        self.read[key] = default
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.setdefault(key, None)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.setdefault(str(key), None)
        return super().__contains__(key)


def check(given: Mapping[str, Any], stage: int) -> None:
    """Raises ValueError at the first option that DeepSpeed has not or not so, beside ZeRO `stage`."""
    from deepspeed.runtime.config import DeepSpeedConfig

    from capo_ray.config.library import merged

    plain = _Watched({"train_batch_size": 1})
    DeepSpeedConfig(plain)
    for name, value in given.items():
        if name not in plain.read:
            raise ValueError(no_such(name, plain.read, LIBRARY))
        _same_kind(name, value, plain.read[name])
    whole = _Watched(merged({"train_batch_size": 1, "zero_optimization": {"stage": stage}}, given))
    try:
        DeepSpeedConfig(whole)
    except ValidationError as error:
        raise ValueError(_inside(error, given)) from None
    except Exception as error:  # it asserts, and has errors of several kinds
        raise ValueError(f"{', '.join(given)}: {LIBRARY} cannot use this: {error}") from None
    for name in given:
        block = whole[name]
        if isinstance(block, _Watched) and block.read and name != "zero_optimization":  # that one has refused by itself
            for inner, value in block.items():
                if inner not in block.read:
                    raise ValueError(f"{name}.{no_such(inner, block.read, LIBRARY)}")
                _same_kind(f"{name}.{inner}", value, block.read[inner])


def _same_kind(name: str, value: Any, default: Any) -> None:
    """The defaults are all that says of what type an option is; one without any may be anything."""
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, int | float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = default is None or isinstance(value, type(default))
    if not fits:
        raise ValueError(f"{name}: must be such as {LIBRARY}'s default {default!r}, got {value!r}")


def _inside(error: ValidationError, given: Mapping[str, Any]) -> str:
    """The first fault of a block, which does not say in which key of the whole it stands."""
    fault = error.errors(include_url=False)[0]
    *way, last = (str(part) for part in fault["loc"]) if fault["loc"] else ("",)
    place = next((name for name, value in given.items() if _has(value, [*way, last])), "")
    where = ".".join(part for part in (place, *way) if part)
    if fault["type"] != "extra_forbidden":
        return f"{place}: {first_line(error)}, got {fault['input']!r}"
    return f"{where}.{no_such(last, _fields(error.title, way), LIBRARY)}"


def _has(value: Any, way: list[str]) -> bool:
    return not way or (isinstance(value, dict) and way[0] in value and _has(value[way[0]], way[1:]))


def _fields(title: str, way: list[str]) -> Iterator[str]:
    """Names of the fields of the block that is called `title`, or of one inside it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    model: Any = next((block for block in _subclasses(DeepSpeedConfigModel) if block.__name__ == title), None)
    for part in way:
        kind = model.model_fields[part].annotation
        model = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
    yield from model.model_fields if model else ()


def _subclasses(model: type) -> Iterator[type]:
    below: type
    for below in model.__subclasses__():
        yield below
        yield from _subclasses(below)
