"""The configuration of a run, and the one door to Hydra.

Hydra composes YAML from `conf/`, `load` validates it once, before Ray starts; nothing else in the project reads it.
Leaves out: what a machine can hold (see `planning`), whether files that are named exist and fit together (see `build`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from capo_ray.config.blocks import Block, Cluster, Data, Model, Rollout, Tracking, Trainer, setting
from capo_ray.config.critic import Critic
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
from capo_ray.config.method import Algorithm, Reward
from capo_ray.config.own_files import base_of, searched, whole
from capo_ray.config.sources import followed, is_path


class Config(Block):
    """One run."""

    name: str = setting("name of the run, and of its directory", "run", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    run_dir: str | None = setting("null: runs/NAME-TIME below the working directory", None)
    resume: bool = setting("continue the run in `run_dir` from its last checkpoint", False)
    dry_run: bool = setting(
        "print the resolved configuration, the placement plan and what a critic would read, then stop", False
    )
    seed: int = setting("every random choice of the run is a function of it", 0, unit="none", ge=0)
    steps: int = setting("rollout batches to train on", unit="steps", gt=0)
    epochs: float | None = setting(
        "passes over the problems, in place of `steps`; as many steps as that takes", None, unit="passes", gt=0
    )
    prompts_per_step: int = setting("problems of one rollout batch", unit="prompts", gt=0)
    responses_per_prompt: int = setting("n: the size of a group", unit="responses", source="CAPO: 16", gt=1)
    checkpoint_every: int = setting("steps between checkpoints; 0: as `checkpoint_minutes` says", 0, unit="steps", ge=0)
    checkpoint_minutes: float = setting(
        "a checkpoint after the step at which the last one is this old, whatever `checkpoint_every` says; 0: not",
        30.0,
        unit="minutes",
        ge=0,
    )
    keep_checkpoints: int = setting("newest checkpoints that are kept", 2, unit="checkpoints", ge=1)
    keep_every: int = setting("checkpoints of steps that are multiples of it stay too; 0: none", 0, unit="steps", ge=0)
    keep_best: str | None = setting(
        "the checkpoint with the highest of this metric stays too: of its evaluation, or else the mean over the steps "
        "since the last checkpoint; null: none",
        "outcome/accuracy",
    )
    export_every: int = setting(
        "steps between models written to `exports/` of the run directory, which stay; 0: none. `policy/` is written at "
        "the end",
        0,
        unit="steps",
        ge=0,
    )
    stop_after_broken_steps: int = setting(
        "more steps in a row than this with a broken policy (no answer right any more, every response cut off, no "
        "credit, a gradient or ratio out of all proportion) end the run; 0: it only warns",
        20,
        unit="steps",
        ge=0,
    )
    stop_within_s: float = setting(
        "a run that is told to end (Ctrl-C, SIGTERM) may take this long for a last checkpoint: less than who ends it "
        "waits before it kills (Slurm's warning: 300 s ahead)",
        240.0,
        unit="s",
        gt=0,
    )
    evaluate_every: int = setting(
        "steps between evaluations; 0: only before the first and at the end", 0, unit="steps", ge=0
    )
    max_dropped_share: float = setting(
        "dropped groups of a step above this share stop the run", 0.5, unit="share", gt=0, le=1
    )

    policy: Model = setting("the model that is trained")
    data: Data = setting("see below")
    rollout: Rollout = setting("see below")
    critic: Critic | None = setting("null: no critiques, outcome rewards only", None)
    reward: Reward = setting("see below", Reward())
    algorithm: Algorithm = setting("see below", Algorithm())
    trainer: Trainer = setting("see below")
    cluster: Cluster = setting("see below", Cluster())
    tracking: Tracking = setting("see below", Tracking())

    @property
    def checkpoints_at_once(self) -> int:
        """How many stand on the disk at most: those that are kept, and the one that is being written."""
        of_steps = self.steps // self.keep_every if self.keep_every else 0
        return self.keep_checkpoints + (self.keep_best is not None) + of_steps + 1

    @property
    def models_written(self) -> int:
        """How many plain models stand on the disk at the end: `exports/`, and the policy."""
        return (self.steps // self.export_every if self.export_every else 0) + 1

    @model_validator(mode="before")
    @classmethod
    def _steps_of_epochs(cls, given: Any) -> Any:
        """Until the problems are counted, a run of `epochs` alone has one step."""
        alone = isinstance(given, Mapping) and given.get("epochs") is not None and "steps" not in given
        return {**given, "steps": 1} if alone else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        from capo_ray.config.rules import check

        check(self)
        return self


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

    from capo_ray.config.idle import idle

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
        return composed("config", overrides)


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
                    tree.merge_with(composed(None, [one.for_hydra()]))
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
