"""Files of a user's own in place of those of `conf/`: an experiment by its path, and a run's config.yaml given back.

    +experiment=./my.yaml              an experiment as those of conf/experiment are, in a folder of one's own
    config=RUN_DIR/config.yaml         a run's whole configuration, with whatever else is given set over it
    run_dir=RUN_DIR resume=true        the same of the run that is resumed

Leaves out composing (compose) and what a configuration must be (its models).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capo_ray.config.fault import ConfigError, limited, shown
from capo_ray.config.given import Given, is_file

GLOBAL = "# @package _global_"
"""First line of an experiment: its keys are those of the whole configuration."""
OF_A_START = {"run_dir": None, "resume": False, "dry_run": False}
"""What a run's config.yaml says of that start alone."""
UNNAMED = 'in "<unicode string>", '
"""What YAML calls a text."""


@contextmanager
def searched(given: Sequence[Given]) -> Iterator[list[str]]:
    """What Hydra is given, with experiments of one's own in a folder that it searches meanwhile. Raises ConfigError."""
    own = {one: Path(str(one.value())).expanduser() for one in given if is_file(one)}
    if not own:
        yield [one.for_hydra() for one in given]
        return
    folder = Path(tempfile.mkdtemp(prefix="capo_ray-"))
    names = {one: f"own_{number}" for number, one in enumerate(own)}
    try:
        (folder / "experiment").mkdir()
        for one, path in own.items():
            text = _experiment(path)
            lines = text if text.startswith(GLOBAL) else f"{GLOBAL}\n{text}"
            (folder / "experiment" / f"{names[one]}.yaml").write_text(lines, encoding="utf-8")
        yield [
            *(f"+experiment={names[one]}" if one in names else one.for_hydra() for one in given),
            f"hydra.searchpath=[file://{folder}]",
        ]
    except ConfigError as error:
        said = str(error)
        for one, path in own.items():
            for name in (f"{folder}/experiment/{names[one]}.yaml", f"experiment/{names[one]}"):
                said = said.replace(name, str(path))
        raise ConfigError(said) from error
    finally:
        shutil.rmtree(folder)


def _experiment(path: Path) -> str:
    """The text of an experiment of one's own. Raises ConfigError."""
    text = _text(path, "experiment")
    found = _read(text, path, "experiment")
    if not isinstance(found, dict):
        raise ConfigError(f"experiment: {path} must hold keys, got {shown(found)}")
    if not {"defaults", "policy"} & found.keys():
        raise ConfigError(
            f"experiment: {path} begins with nothing: name the experiment that it changes, defaults: [tiny_cpu, _self_]"
        )
    return text


def base_of(given: Sequence[Given]) -> Path | None:
    """The configuration that is given whole, or that of the run that is resumed by nothing but its directory. Raises
    ConfigError."""
    by_key = {one.key: one for one in given}
    named = [key for key in ("config", "experiment", "evaluation") if key in by_key]
    if len(named) > 1 and "config" in named:
        raise ConfigError(f"config, {named[1]}: both say where everything else comes from; give one of the two")
    if "config" in named:
        return Path(str(by_key["config"].value())).expanduser()
    resumed = by_key["resume"].value() is True if "resume" in by_key else False
    if resumed and not named:
        if "run_dir" not in by_key:
            raise ConfigError("resume: name the run to resume with run_dir=DIR")
        folder = Path(str(by_key["run_dir"].value())).expanduser()
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"run_dir: {folder} holds no run to resume (no config.yaml)")
        return folder / "config.yaml"
    return None


def whole(path: Path) -> dict[str, Any]:
    """A run's configuration, but for what was of its start alone. Raises ConfigError."""
    found = _read(_text(path, "config"), path, "config")
    if not isinstance(found, dict):
        raise ConfigError(f"config: {path} must hold a configuration such as a run's config.yaml")
    return {**found, **OF_A_START}


def _read(text: str, path: Path, key: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}: {path} is no YAML: {limited(str(error).replace(UNNAMED, 'in '))}") from None


def _text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{key}: {path} cannot be read: {said}") from None
