"""What is given on a command line, argument by argument: read as Hydra would, refused in words where it cannot be read.

Leaves out composing (see `compose`) and whether there is such a key, which its model says.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from capo_ray.config.fault import LONGEST, ConfigError, limited, shown

ADDED = ("experiment", "size")
"""Groups that `config.yaml` has no place for: Hydra wants a + before them, nobody else does."""


HYDRAS = re.compile(r"hydra\b")
ENDINGS = (".yaml", ".yml")
"""Of an experiment that is named by its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One argument."""

    mark: str
    """+, ++, ~ or nothing, as Hydra has them."""
    key: str
    text: str | None
    """What stands behind the first =; None without one."""
    is_group: bool
    """Whether a file of `conf/` is chosen, and no value set."""

    @classmethod
    def of(cls, experiment: str) -> Given:
        """`+experiment=NAME`"""
        return cls(mark="+", key="experiment", text=experiment.partition("=")[2], is_group=True)

    @property
    def leaves_out(self) -> bool:
        """`GROUP=null`, or `~GROUP`: Hydra alone would take the file away and keep what experiments set in it."""
        left = (self.mark, self.text) in (("", "null"), ("~", None))
        return self.is_group and left and "@" not in self.key

    @property
    def sets_value(self) -> bool:
        return not self.is_group and self.mark != "~" and not self.key.startswith("hydra")

    def for_hydra(self) -> str:
        """Hydra refuses to set what no YAML file names; whether there is such a key is for the models to say."""
        mark = "++" if self.sets_value and not self.mark else self.mark
        return f"{mark}{self.key}" if self.text is None else f"{mark}{self.key}={self.text}"

    def value(self) -> Any:
        return _parsed(self.for_hydra()).value()


def read(argument: str, groups: Mapping[str, Sequence[str]]) -> Given:
    """Raises ConfigError where it is no argument, has no value or several in Hydra's grammar, or names a file that is
    not among the `groups` of `conf/`."""
    bare = argument.lstrip("+~")
    mark = argument[: len(argument) - len(bare)]
    key, equals, text = bare.partition("=")
    if equals and text.startswith("~/"):  # which shells leave alone there
        text = f"{Path.home()}{text[1:]}"
    is_group = "@" in key or key in groups
    if key in ADDED and not mark:
        mark = "+"
    if key == "experiment" and text.endswith("_sft"):
        raise ConfigError(f"a supervised training is started with: python -m capo_ray.sft {argument}")
    if HYDRAS.match(key) and key != "hydra.searchpath":
        raise ConfigError(
            f"{limited(key)}: Hydra only composes here, and of its own keys hydra.searchpath alone is used"
        )
    given = Given(mark=mark, key=key, text=text if equals else None, is_group=is_group)
    refuse_unreadable(given.for_hydra())
    if is_group and mark != "~" and not is_file(given):
        _refuse_unknown(given, groups)
    return given


def is_file(given: Given) -> bool:
    """Whether it names an experiment by the path of its file."""
    return given.key == "experiment" and (given.text or "").strip("'\"").endswith(ENDINGS)


def _refuse_unknown(given: Given, groups: Mapping[str, Sequence[str]]) -> None:
    """Raises ConfigError where a group, or its file, is not there."""
    group, name = given.key.partition("@")[0], given.value()
    if group not in groups:
        raise ConfigError(f"{limited(group)}: there is no such group; there are {', '.join(sorted(groups))}")
    if name is None or name in groups[group]:
        return
    if not isinstance(name, str):
        raise ConfigError(f"{limited(given.key)}: takes one name of conf/{group}, got {shown(name)}")
    near = get_close_matches(name[:LONGEST], groups[group], n=3)
    there = experiments(groups[group]) if group == "experiment" else ", ".join(groups[group])
    if given.key == "model":
        raise ConfigError("model: which one? policy.path=FOLDER_OR_ID, or model@policy=NAME of conf/model")
    said = f"did you mean {' or '.join(near)}?" if near else f"there are {there}"
    raise ConfigError(f"{limited(given.key)}: there is no {shown(name)} in conf/{group}; {said}")


def experiments(names: Sequence[str]) -> str:
    """Those of the paper as a pattern, since there are dozens."""
    small = [name for name in names if "cpu" in name and not name.endswith("_sft")]
    papers = sorted({name.rpartition("_")[0] for name in names if "cpu" not in name})
    return (
        f"{', '.join(small)}, or one of the paper's ({', '.join(f'{policy}_intersection' for policy in papers)}, ...)"
    )


def in_order(given: Iterable[Given]) -> list[Given]:
    """A size is of the experiment that it is given with, wherever it stands."""
    return sorted(given, key=lambda one: one.key == "size")


def refuse_left_out(given: Iterable[Given], without: Collection[str]) -> None:
    """Raises ConfigError where a key is set in a block that is left out."""
    for one in given:
        block = one.key.split(".")[0]
        if one.sets_value and block in without:
            raise ConfigError(f"{one.key}: {block}=null leaves the whole block out; give one of the two")


def refuse_two(given: Sequence[Given]) -> None:
    """Raises ConfigError for two experiments or sizes: neither is set over the other."""
    for group in ADDED:
        if len(named := [str(one.text) for one in given if one.key == group and one.mark != "~"]) > 1:
            raise ConfigError(f"{group}: {' and '.join(map(shown, named))} are given; give one")


def refuse_plain(given: Iterable[Given], blocks: Collection[str]) -> None:
    """Raises ConfigError where one value is set in place of a block."""
    for one in given:
        if one.sets_value and one.key in blocks and not isinstance(value := one.value(), dict | type(None)):
            raise ConfigError(f"{one.key}: must be a block of keys, or null; got {shown(value)}")


def _parsed(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def refuse_unreadable(override: str) -> None:
    """Raises ConfigError where Hydra's grammar has no value in an override, or several."""
    from hydra.errors import HydraException

    key, equals, value = override.removeprefix("++").partition("=")
    if not equals and not override.startswith("~"):
        raise ConfigError(f"{limited(key)}: arguments are key=value")
    try:
        if not _parsed(override).is_sweep_override():
            return
    except HydraException:
        pass
    said = "is read as grammar: commas, brackets, quotes, = and # mean something there"
    if len(value) > LONGEST:
        raise ConfigError(f"{shown(key)}: a part of its value {said}; put it in double quotes, and all in single ones")
    quoted = shlex.quote(f"{key}={_quoted(value)}")
    what = f"`{value}`" if value.isprintable() else shown(value)
    if limited(override) != override:  # nothing of it is repeated where it may hold a key
        raise ConfigError(
            f"{limited(key)}: a part of its value {said}; put it in double quotes, and all in single ones"
        )
    raise ConfigError(f"{key}: a part of {what} {said}; quote it once for the shell and once for that: {quoted}")


def _quoted(value: str) -> str:
    """As Hydra's grammar has a text; of a list of texts, each item."""
    if value.startswith("[") and value.endswith("]") and "{" not in value:
        return f"[{','.join(map(_as_text, value[1:-1].split(',')))}]"
    return _as_text(value)


def _as_text(value: str) -> str:
    value = value.strip()
    escaped = value.replace('"', '\\"')
    return value if len(value) > 1 and value[0] == value[-1] == '"' else f'"{escaped}"'
