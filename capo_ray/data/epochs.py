"""`epochs` in place of `steps`: how many steps make so many passes over the problems.

Counts problems as they are read, those whose prompts will be too long among them. Leaves out drawing (prompts).
"""

from __future__ import annotations

import math

from capo_ray.config.run import Config
from capo_ray.data.prompts import problems_of


def in_steps(config: Config) -> Config:
    """`config` with the steps that its `epochs` come to; as it is where it counts in steps. Raises DataError."""
    if config.epochs is None:
        return config
    problems = len(problems_of(config)[0])
    steps = math.ceil(config.epochs * problems / config.prompts_per_step)
    return config.model_copy(update={"steps": steps, "epochs": None})
