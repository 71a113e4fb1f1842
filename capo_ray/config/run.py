"""The configuration of a run, checked when it is made.

Leaves out where it comes from (see `compose`), what a machine can hold (see `planning`), and whether files that are
named exist and fit together (see `training`).
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from capo_ray.config.fields import Fields
from capo_ray.config.rules import check


class Config(Fields):
    """One run."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check(self)
        return self
