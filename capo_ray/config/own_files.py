"""Files of a user's own in place of those of `conf/`: an experiment by its path, and a run's config.yaml given back.

    +experiment=./my.yaml              an experiment as those of conf/experiment are, in a folder of one's own
    config=RUN_DIR/config.yaml         a run's whole configuration, with whatever else is given set over it
    run_dir=RUN_DIR resume=true        the same of the run that is resumed

Leaves out composing (run) and what a configuration must be (its models).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capo_ray.config.fault import ConfigError, limited
from capo_ray.config.given import Given, is_file

GLOBAL = "# @package _global_"
"""First line of an experiment: its keys are those of the whole configuration."""
OF_A_START = {"run_dir": None, "resume": False, "dry_run": False}
"""What a run's config.yaml says of that start alone."""


@contextmanager
def searched(given: Sequence[Given]) -> Iterator[list[str]]:
    """What Hydra is given, with experiments of one's own in a folder that it searches meanwhile. Raises ConfigError."""
    own = [one for one in given if is_file(one)]
    if not own:
        yield [one.for_hydra() for one in given]
        return
    folder = Path(tempfile.mkdtemp(prefix="capo_ray-"))
    try:
        (folder / "experiment").mkdir()
        names = {}
        for number, one in enumerate(own):
            text = _text(Path(str(one.value())).expanduser(), "experiment")
            names[one] = f"own_{number}"
            lines = text if text.startswith(GLOBAL) else f"{GLOBAL}\n{text}"
            (folder / "experiment" / f"{names[one]}.yaml").write_text(lines, encoding="utf-8")
        yield [
            *(f"+experiment={names[one]}" if one in names else one.for_hydra() for one in given),
            f"hydra.searchpath=[file://{folder}]",
        ]
    finally:
        shutil.rmtree(folder)


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
    if resumed and "run_dir" in by_key and not named:
        folder = Path(str(by_key["run_dir"].value())).expanduser()
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"run_dir: {folder} holds no run to resume (no config.yaml)")
        return folder / "config.yaml"
    return None


def whole(path: Path) -> dict[str, Any]:
    """A run's configuration, but for what was of its start alone. Raises ConfigError."""
    import yaml

    try:
        found = yaml.safe_load(_text(path, "config"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"config: {path} is no YAML: {limited(str(error))}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"config: {path} must hold a configuration such as a run's config.yaml")
    return {**found, **OF_A_START}


def _text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{key}: {path} cannot be read: {said}") from None
