"""Who is awake when, where all roles share all GPUs (`cluster.sharing` turns).

Pure arithmetic over a Config and the shapes of its models. Leaves out putting anybody to sleep (cluster) and what a
role takes while it is awake (memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from capo_ray.config.model import Shape
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role

Phase = Literal["sample", "judge", "train", "sync"]
"""Of a step, in this order; weights move in `sync`."""

NEEDED: dict[Phase, frozenset[Role]] = {
    "sample": frozenset({"rollout"}),
    "judge": frozenset({"critic"}),
    "train": frozenset({"trainer"}),
    "sync": frozenset({"trainer", "rollout"}),
}
"""Who works in a phase. In `sync` an engine needs its weights and no KV cache."""


def awake(config: Config, shapes: Mapping[str, Shape | None], gpu_gib: float) -> Mapping[Phase, frozenset[Role]]:
    """Who may be awake in each phase of a step of `config`, on GPUs of `gpu_gib`: who works in it, at least. `shapes`
    as in plan.plan_for."""
    return NEEDED
