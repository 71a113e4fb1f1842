"""What an experiment of the laboratory is: arms, each some overrides of one run, over seeds. Read from conf/lab/*.yaml.

Leaves out running it (see `lab.runs`) and what is said of it (see `lab.report`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.fault import ConfigError, limited, line
from capo_ray.config.run import Config


class Arm(BaseModel):
    """One way of training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: str = Field(description="what it is, in words")
    overrides: tuple[str, ...] = ()
    seeds: int | None = Field(None, gt=0, description="seeds 0 to this - 1; null: the design's")
    group: str = Field("arms", description="the table that it stands in")
    against: tuple[str, ...] = Field((), description="arms that it is compared with; none: the design's baseline")


class Design(BaseModel):
    """A set of runs to be compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    common: tuple[str, ...] = Field(description="overrides of every run")
    seeds: int = Field(gt=0)
    baseline: str = Field(description="arm that the others are compared with")
    first_seed: int = Field(0, ge=0)
    arms: dict[str, Arm]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"`baseline` {self.baseline} is none of the arms: {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            if unknown := [other for other in arm.against if other not in self.arms]:
                raise ValueError(f"arm {name} is compared with {', '.join(unknown)}, which is none of the arms")
        return self

    def runs(self, arms: Collection[str] = ()) -> list[tuple[str, int]]:
        """(arm, seed) of these arms, or of all: the arms with the most seeds first, and these seed by seed, so that
        whatever is there at any time can be compared. Raises ConfigError."""
        if unknown := [arm for arm in arms if arm not in self.arms]:
            raise ConfigError(f"{', '.join(unknown)}: none of the arms, which are {', '.join(self.arms)}")
        made = [
            (-self._seeds(name), seed, place, name)
            for place, name in enumerate(self.arms)
            if not arms or name in arms
            for seed in range(self._seeds(name))
        ]
        return [(name, self.first_seed + seed) for _, seed, _, name in sorted(made)]

    def with_common(self, overrides: Iterable[str]) -> Design:
        """With these for every arm too, before the arms' own."""
        return self.model_copy(update={"common": (*self.common, *overrides)})

    def groups(self) -> list[str]:
        return list(dict.fromkeys(arm.group for arm in self.arms.values()))

    def own(self, group: str) -> list[str]:
        """The arms that `group` is about."""
        return [name for name, arm in self.arms.items() if arm.group == group]

    def against(self, arm: str) -> tuple[str, ...]:
        """The arms that `arm` is compared with."""
        return tuple(other for other in self.arms[arm].against or (self.baseline,) if other != arm)

    def members(self, group: str) -> list[str]:
        """The arms in the table of `group`: those that its own are compared with, then its own."""
        own = self.own(group)
        others = [other for arm in own for other in self.against(arm) if other not in own]
        return [*dict.fromkeys(others), *own]

    def _seeds(self, arm: str) -> int:
        return self.arms[arm].seeds or self.seeds

    def config(self, arm: str, seed: int, run_dir: Path) -> Config:
        """The whole configuration of one run. Raises ConfigError."""
        own = (f"seed={seed}", f"run_dir={run_dir}", f"name={arm}")
        config = compose([*self.common, *self.arms[arm].overrides, *own])
        if config.data.kind != "arithmetic":
            raise ConfigError(
                f"arm {arm}: the laboratory measures by the truth of every step, which the tiny world alone has "
                f"(data.kind=arithmetic, got {config.data.kind})"
            )
        return config


def designs() -> list[str]:
    return sorted(path.stem for path in (conf_dir() / "lab").glob("*.yaml"))


def load(name: str) -> Design:
    """A design of conf/lab by its name, or of any file. Raises ConfigError."""
    path = Path(name) if name.endswith(".yaml") else conf_dir() / "lab" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no design {name}: it is one of {', '.join(designs())}, or a file ending in .yaml")
    try:
        return Design.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line(fault, Design)}" for fault in error.errors())) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {limited(str(error))}") from None
