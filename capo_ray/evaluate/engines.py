"""The engine of an evaluation: the policy with frozen weights, in this process or, with several workers or on a cluster
that is joined, on Ray.

Leaves out what is asked (responses) and the critics (critic_bench.engines).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from capo_ray.config.run import Config
from capo_ray.critic_bench.engines import ENGINE_LOG, prepare, quiet
from capo_ray.evaluate.responses import Sampler
from capo_ray.models.find import ModelFiles
from capo_ray.planning.bundles import actor_name
from capo_ray.training.build import make_rollout
from capo_ray.training.settings import rollout_settings


@asynccontextmanager
async def policy_of(config: Config, policy: ModelFiles, *, window: int, logs: Path) -> AsyncIterator[Sampler]:
    """An engine over all of `rollout.workers`; `window` is the longest prompt and response together, in tokens."""
    settings = replace(rollout_settings(config, policy, trained=False), window=window)
    if config.rollout.workers == 1 and config.cluster.address is None:
        prepare(config, "rollout")
        with quiet(logs / ENGINE_LOG):
            engine = make_rollout(settings, actor_name("rollout", 0))
        try:
            yield engine
        finally:
            engine.close()
        return
    from capo_ray.cluster.frozen_pool import frozen_pool
    from capo_ray.cluster.session import ray_session

    with ray_session(config.cluster, logs=logs):
        async with frozen_pool(config, lambda seat: (partial(make_rollout, settings, seat.name),)) as pool:
            yield pool
