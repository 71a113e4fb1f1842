"""The one door to Hydra: files of `conf/` and a command line become a Config.

Hydra composes, `load` validates once, before Ray starts; nothing else in the project reads YAML of runs. Leaves out how
arguments are read (see `given`) and what follows a model's path (see `sources`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capo_ray.config.fault import ConfigError, blocks, limited, line
from capo_ray.config.given import (
    Given,
    experiments,
    in_order,
    read,
    refuse_left_out,
    refuse_plain,
    refuse_two,
    refuse_unreadable,
)
from capo_ray.config.idle import idle
from capo_ray.config.own_files import base_of, searched, whole
from capo_ray.config.run import Config
from capo_ray.config.sources import followed, is_path


def conf_dir() -> Path:
    """Folder of the YAML files: the installed copy, else the checkout's."""
    here = Path(__file__).resolve().parents[1]
    for path in (here / "conf", here.parent / "conf"):
        if (path / "config.yaml").is_file():
            return path
    raise FileNotFoundError(
        f"capo_ray's configuration is neither in {here / 'conf'} nor in {here.parent / 'conf'}; reinstall the package"
    )


def load(tree: Any) -> Config:
    """Validate what Hydra composed. Raises ConfigError with one line per fault: path, what is wrong, the value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "configuration"
        raise ConfigError(f"{where}: {limited(str(error).partition(chr(10))[0])}") from error
    return validate(plain)


def validate(plain: Any) -> Config:
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(line(fault, Config) for fault in error.errors()))) from None


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/` with command-line overrides, such as "+experiment=tiny_cpu", and validate the result.

    A field that no YAML file names can be set as any other, `key=value`, and `GROUP=null` leaves a whole block out. A
    size is of the experiment that it is given with, wherever it stands. An experiment may be a file of one's own, and
    `config=FILE` a whole configuration. What belongs to a model follows its path. What is given and has no effect is a
    warning. Raises ConfigError.
    """
    from omegaconf import OmegaConf, open_dict

    groups = {
        path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in conf_dir().iterdir() if path.is_dir()
    }
    given = in_order([read(override, groups) for override in overrides])
    without = [one.key for one in given if one.leaves_out]
    refuse_left_out(given, without)
    refuse_two(given)
    refuse_plain(given, blocks(Config))
    base, kept = base_of(given), [one for one in given if not (one.leaves_out or is_path(one) or one.key == "config")]
    tree = _set_over(whole(base), kept) if base else _composed_of(kept)
    if OmegaConf.select(tree, "policy") is None and not any(one.key == "experiment" for one in given):
        if base:
            raise ConfigError(f"config: {base} has no `policy`, so it is no whole configuration; +experiment={base}?")
        raise ConfigError(f"no experiment is named: pass +experiment=NAME, one of {experiments(groups['experiment'])}")
    counted = {one.key for one in given if one.key in ("steps", "epochs") and one.text != "null"}
    if len(counted) == 2:
        raise ConfigError("steps, epochs: both say how long the run is; give one of the two")
    with open_dict(tree):
        if counted == {"steps"}:
            tree.epochs = None
        for block in without:
            OmegaConf.update(tree, block, None)
        for field, value in followed(tree, given, conf_dir() / "model"):
            OmegaConf.update(tree, field, value, force_add=True)
    config = load(tree)
    for said in idle(config, [one.key for one in given if one.sets_value]):
        warnings.warn(said, stacklevel=2)
    return config


def _composed_of(given: Sequence[Given]) -> Any:
    with searched(given) as overrides:
        tree = composed("config", overrides)
        plain = [override for override in overrides if not override.startswith("+size=")]
        return tree if plain == overrides else _with_critics_of(composed("config", plain), tree)


def _with_critics_of(before: Any, sized: Any) -> Any:
    """A size says which engines criticise; where there are none it says nothing."""
    from omegaconf import OmegaConf, open_dict

    if OmegaConf.select(before, "critic.kind") != "vllm":
        with open_dict(sized):
            OmegaConf.update(sized, "critic", before.get("critic"), merge=False, force_add=True)
    return sized


def _set_over(base: Mapping[str, Any], given: Sequence[Given]) -> Any:
    """A whole configuration with files of groups and values in place of its own."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(dict(base))
    with open_dict(tree):
        for one in given:
            if one.mark == "~" or one.key.startswith("hydra"):
                raise ConfigError(f"{one.mark}{one.key}: this goes with an experiment, and config= names a whole file")
            try:
                if one.is_group and one.key == "size":
                    tree = _with_critics_of(tree, OmegaConf.merge(tree, composed(None, [one.for_hydra()])))
                elif one.is_group:
                    place = one.key.partition("@")[2] or one.key
                    found = composed(None, [f"+{one.key}={one.text}"])
                    OmegaConf.update(tree, place, OmegaConf.select(found, place), merge=False)
                else:
                    OmegaConf.update(tree, one.key, one.value(), force_add=True)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{one.key}: {limited(str(error).partition(chr(10))[0])}") from error
    return tree


def composed(name: str | None, overrides: Sequence[str]) -> Any:
    """What Hydra makes of `conf/NAME.yaml`, or of nothing, with overrides. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return hydra_compose(config_name=name, overrides=list(overrides))
    except YAMLError as error:
        raise ConfigError(f"a file is no YAML: {limited(str(error))}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        for override in overrides:
            refuse_unreadable(override)
        raise ConfigError(_in_short(str(error))) from error


def _in_short(said: str) -> str:
    """What Hydra said, without where it searched and without its own words for where it was."""
    first, _, rest = said.partition("\n")
    place, colon, what = first.partition(": ")
    if colon and what.endswith("raised while composing config:") and rest:
        return limited(f"{place}: {rest.partition(chr(10))[0]}")
    return limited(first)
