"""The configuration of a run, and the one door to Hydra.

Hydra composes YAML from `conf/`, `load` validates it once, before Ray starts; nothing else in the project reads it.
Leaves out: what a machine can hold (see `planning`), whether files that are named exist and fit together (see `build`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from capo_ray.config.blocks import Block, Cluster, Data, Model, Rollout, Tracking, Trainer, setting
from capo_ray.config.critic import Critic
from capo_ray.config.method import Algorithm, Reward


class ConfigError(ValueError):
    """The configuration is not one that can run; the message names the field, the value and what to do."""


class Config(Block):
    """One run."""

    name: str = setting("name of the run, and of its directory", "run", pattern=r"^[A-Za-z0-9._-]+$")
    run_dir: str | None = setting("null: runs/NAME-TIME below the working directory", None)
    resume: bool = setting("continue the run in `run_dir` from its last checkpoint", False)
    dry_run: bool = setting(
        "print the resolved configuration, the placement plan and what a critic would read, then stop", False
    )
    seed: int = setting("every random choice of the run is a function of it", 0, unit="none", ge=0)
    steps: int = setting("rollout batches to train on", unit="steps", gt=0)
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
        raise ConfigError(str(error)) from error
    return validate(plain)


def validate(plain: Any) -> Config:
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(fault) for fault in error.errors())) from None


def _line(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "configuration"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"{path}: no such key; see docs/configuration.md for the keys there are"
    if fault["type"] in ("missing", "value_error"):
        return f"{path}: {message}"
    return f"{path}: {message}, got {fault['input']!r}"


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/` with command-line overrides, such as "+experiment=tiny_cpu", and validate the result.

    A field that no YAML file names can be set as any other, `key=value`, and `GROUP=null` leaves a whole block out. A
    size is of the experiment that it is given with, wherever it stands.
    """
    from omegaconf import OmegaConf, open_dict

    overrides = sorted(overrides, key=lambda override: override.startswith("+size="))
    for override in overrides:
        if override.startswith("+experiment=") and override.endswith("_sft"):
            raise ConfigError(f"a supervised training is started with: python -m capo_ray.sft {override}")
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    without = [group for group in groups if f"{group}=null" in overrides]
    given = [
        _settable(_at_home(override), groups) for override in overrides if override.removesuffix("=null") not in without
    ]
    tree = composed("config", given)
    with open_dict(tree):
        for group in without:
            OmegaConf.update(tree, group, None)
    return load(tree)


def composed(name: str | None, overrides: Sequence[str]) -> Any:
    """What Hydra makes of `conf/NAME.yaml`, or of nothing, with overrides. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return hydra_compose(config_name=name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        for override in overrides:
            _refuse_unreadable(override)
        raise ConfigError(str(error)) from error


def _settable(override: str, groups: set[str]) -> str:
    """Hydra refuses to set what no YAML file names; whether there is such a key is for `validate` to say."""
    key = override.split("=", 1)[0]
    plain = "=" in override and key[:1] not in "+~" and "@" not in key and key not in groups
    return f"++{override}" if plain and not key.startswith("hydra") else override


def _at_home(override: str) -> str:
    """`key=~/file` with the home directory in place of ~, which shells leave alone there."""
    key, equals, value = override.partition("=")
    return f"{key}={Path.home()}{value[1:]}" if equals and value.startswith("~/") else override


def _refuse_unreadable(override: str) -> None:
    """Raises ConfigError where Hydra's grammar has no value in an override, or several."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        if not OverridesParser.create().parse_override(override).is_sweep_override():
            return
    except HydraException:
        pass
    key, equals, value = override.removeprefix("++").partition("=")
    if not equals:
        raise ConfigError(f"{override}: arguments are key=value, or +group=name")
    raise ConfigError(
        f"{key}: Hydra reads a part of `{value}` as its own grammar; quote it once for the shell and once for Hydra: "
        f"'{key}={_quoted(value)}'"
    )


def _quoted(value: str) -> str:
    """As Hydra's grammar has a text; of a list of texts, each item."""
    if value.startswith("[") and value.endswith("]") and "{" not in value:
        return f"[{','.join(map(_as_text, value[1:-1].split(',')))}]"
    return _as_text(value)


def _as_text(value: str) -> str:
    value = value.strip()
    escaped = value.replace('"', '\\"')
    return value if len(value) > 1 and value[0] == value[-1] == '"' else f'"{escaped}"'
