"""What belongs to a model goes where its path goes: shape, chat template and tokenizer are those of the path.

A group of `conf/model` names all of them together. Where another path is set afterwards, they are those of the entry of
`conf/model` that has this path, or the name at its end, and else none, so that they are read from the model's files. A
path that is a run's directory means the policy that the run exported. Leaves out finding the files (see `models`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from capo_ray.config.fault import ConfigError
from capo_ray.config.given import Given

FOLLOW = ("shape", "chat_template", "tokenizer")
"""Fields of a model that follow its path, unless they are set beside it."""


MODELS = ("policy", "critic.model")
"""Where a configuration has a model, those of `critic.others` apart."""


def is_path(given: Given) -> bool:
    """Whether it sets the path of a model; `followed` does that after everything else."""
    return given.sets_value and given.key in [f"{place}.path" for place in MODELS]


def followed(tree: Any, given: Sequence[Given], models: Path) -> Iterator[tuple[str, Any]]:
    """(field of the composed `tree`, what it becomes) where `given` sets a model's path, or names an entry of
    `conf/model`, the folder `models`, that an experiment has another path for."""
    from omegaconf import OmegaConf

    for place in MODELS:
        if (path := _path_of(place, given, models)) is None:
            continue
        block = OmegaConf.select(tree, place) or {}
        whole = [one.value() for one in given if one.key == place and one.sets_value]
        beside = {name for value in whole if isinstance(value, dict) for name in value}
        beside |= {one.key.removeprefix(f"{place}.").split(".")[0] for one in given}
        for field, value in follow(None if whole else block.get("path"), path, beside, models).items():
            yield f"{place}.{field}", value
    others = OmegaConf.select(tree, "critic.others")
    blocks = (
        [dict(other) if isinstance(other, Mapping) else {} for other in others] if OmegaConf.is_list(others) else []
    )
    for number, model in enumerate(block.get("model") for block in blocks):
        if isinstance(model, Mapping) and model.get("path"):
            entry = known(str(model["path"]), models)
            for field in (field for field in FOLLOW if field in entry and field not in model):
                yield f"critic.others[{number}].model.{field}", entry[field]


def _path_of(place: str, given: Sequence[Given], models: Path) -> str | None:
    """The path that is given for the model at `place`, by itself, in its whole block, or by an entry of `models`."""
    import yaml

    path = None
    for one in given:
        value = one.value() if one.key in (f"{place}.path", place, f"model@{place}") and one.mark != "~" else None
        if one.key == place and isinstance(value, dict):
            value = value.get("path")
        elif one.key == f"model@{place}":
            entry = models / f"{value}.yaml"
            value = yaml.safe_load(entry.read_text(encoding="utf-8"))["path"] if entry.is_file() else None
        path = path if value is None else str(value)
    return path


def follow(before: str | None, path: str, given: Collection[str], models: Path) -> dict[str, Any]:
    """What changes in a model's block when its path becomes `path` and was `before`; `given` are fields that were set
    beside it."""
    path = exported(path)
    if path in (before, "random"):  # random weights are of any shape
        return {"path": path}
    entry = known(path, models)
    return {"path": path} | {field: entry.get(field) for field in FOLLOW if field not in given}


def known(path: str, models: Path) -> dict[str, Any]:
    """The entry of `conf/model` for this path; of a folder that is here, what its own files do not say."""
    import yaml

    def entry_of(file: Path) -> dict[str, Any]:
        """With what it has from others, which its `defaults` name."""
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
        others = [models / f"{name}.yaml" for name in own.pop("defaults", ()) if name != "_self_"]
        return {key: value for one in (*map(entry_of, others), own) for key, value in one.items()}

    entries = [entry_of(file) for file in sorted(models.glob("*.yaml"))]
    name = _last(path)
    found: dict[str, Any] = next(
        (entry for entry in entries if path == entry["path"]),
        next((entry for entry in entries if name == _last(entry["path"])), {}),
    )
    return {**found, "shape": None} if _holds(path, "config.json") else found


def _holds(folder: str, name: str) -> bool:
    """False too where no path can be so long."""
    return os.path.isfile(Path(folder).expanduser() / name)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].casefold()


def exported(path: str) -> str:
    """`path`, or the policy in it where it is a run's directory. Raises ConfigError where that holds none yet."""
    if _holds(path, "config.json") or not _holds(path, "config.yaml"):
        return path
    if _holds(path, "policy/config.json"):
        return str(Path(path) / "policy")
    raise ConfigError(
        f"{path} is the directory of a run that has written no policy/ yet, which it does when it ends; "
        f"python -m capo_ray.export {path} writes that of its last checkpoint"
    )
