"""Settings of a program's own: a block that is read from `key=value`, beside the configuration of a run or alone.

Leaves out composing that configuration (see `compose`) and how settings are listed (see `listing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from capo_ray.arguments import refuse_flags, unknown
from capo_ray.config.block import Block
from capo_ray.config.compose import conf_dir
from capo_ray.config.fault import ConfigError, limited, line
from capo_ray.config.run import Config
from capo_ray.config.sensible import kinds_of

AnyPath = Annotated[Path, AfterValidator(Path.expanduser)]


class BesideRun(Block):
    """Settings of a program that takes configuration of a run as well."""

    overrides: tuple[str, ...] = Field((), exclude=True)
    """What is given of that."""


Own = TypeVar("Own", bound=Block)


def read_own(kind: type[Own], arguments: Sequence[str], *, place: str = "") -> Own:
    """The settings; `place` names the one that may be given without its key. A key that is given twice is what it was
    given last. Raises BadArgument or ConfigError with one line per fault."""
    names = [name for name, field in kind.model_fields.items() if not field.exclude]
    given: dict[str, Any] = {}
    rest: list[str] = []
    refuse_flags(arguments)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key in names:
            given[key] = _parsed(kind, key, text)
        elif place and place not in given and (not equals or Path(argument).exists()):
            given[place] = argument
        else:
            rest.append(argument)
    if issubclass(kind, BesideRun):
        _refuse_misspelt(rest, names)
        given["overrides"] = tuple(rest)
    elif rest:
        key, equals, _ = rest[0].partition("=")
        raise ConfigError(limited(unknown(key, names) if equals else f"{key}: arguments are key=value"))
    return validated(kind, given)


def validated(kind: type[Own], given: Mapping[str, Any]) -> Own:
    """Raises ConfigError with one line per fault."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(line(fault, kind) for fault in error.errors())) from None


def _parsed(kind: type[Block], key: str, text: str) -> Any:
    """`text` as the model reads it. Raises ConfigError where there is none."""
    if not text:
        raise ConfigError(f"{key}: must not be empty; leave it out for its default")
    kinds = kinds_of(kind, key)
    if text == "null" and type(None) in kinds:
        return None
    if tuple in kinds:
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    return text


def _refuse_misspelt(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Raises ConfigError where one is no `key=value`, or nearer to a setting of the program than to one of a run."""
    of_runs = {*Config.model_fields, *(folder.name for folder in conf_dir().iterdir() if folder.is_dir()), "config"}
    for argument in arguments:
        key, equals, _ = argument.lstrip("+").partition("=")
        if not equals and not argument.startswith("~"):
            raise ConfigError(f"{limited(argument)}: arguments are key=value")
        if key.isidentifier() and key not in of_runs:
            near = get_close_matches(key[:80], [*names, *of_runs], n=1)
            if near and near[0] in names:
                raise ConfigError(f"{limited(key)}: no such key; did you mean {near[0]}?")
