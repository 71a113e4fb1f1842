"""Rollout workers whose weights never move, as one engine: several copies of a model that only answer.

A worker that dies is started again by Ray, and what it had not delivered is sampled elsewhere. Leaves out routing
(rollout_pool) and everything else of a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import ray

from capo_ray.cluster.actors import RolloutActor
from capo_ray.cluster.gauges import Badge
from capo_ray.cluster.patience import when_up, with_patience
from capo_ray.cluster.placement import MANY, RESTARTS, environment, refuse_too_much
from capo_ray.cluster.rollout_pool import RolloutPool
from capo_ray.config.run import Config
from capo_ray.gate import Gate
from capo_ray.plan import CPU_SHARE
from capo_ray.types import Prompt, Rollout, Sampling


class FrozenPool:
    """The part of protocols.RolloutEngine that answers."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers
        self._pool = RolloutPool(workers, Gate(), revive=self._ready)

    async def _ready(self) -> None:
        await asyncio.gather(*(when_up(worker, f"rollout-{n} to start") for n, worker in enumerate(self._workers)))

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        found: list[Rollout] = []

        async def deliver(reference: Any) -> int:
            rollout = await reference
            found.append(rollout)
            return int(rollout.index)

        await self._pool.revive()  # weights never move here, so nobody else brings a dead worker back
        await self._pool.generate(prompt, sampling, seeds, deliver)
        for rollout in found:
            yield rollout


def badge_of(config: Config, number: int) -> Badge:
    return Badge(config.name, "rollout", f"rollout-{number}")


@asynccontextmanager
async def frozen_pool(config: Config, factories: Sequence[Callable[[], Any]]) -> AsyncIterator[FrozenPool]:
    """One worker per factory, started, and gone at the end. Inside a Ray session. Raises NotEnough."""
    gpus = float(config.rollout.tensor_parallel) if config.cluster.device == "gpu" else 0.0
    need = {"CPU": max(1.0, gpus) if gpus else CPU_SHARE, "GPU": gpus}
    refuse_too_much([need] * len(factories), ray.cluster_resources())
    options = {"num_cpus": need["CPU"], "num_gpus": gpus, "max_concurrency": MANY, "max_restarts": RESTARTS}
    settings = {"env_vars": environment(config, "rollout")}
    workers = [
        ray.remote(RolloutActor).options(runtime_env=settings, **options).remote(make, badge_of(config, n))
        for n, make in enumerate(factories)
    ]
    try:
        await asyncio.gather(
            *(with_patience(worker.ready.remote(), f"rollout-{n} to start") for n, worker in enumerate(workers))
        )
        yield FrozenPool(workers)
    finally:
        closing = [worker.close.remote() for worker in workers]
        await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=10)
        for worker in workers:
            ray.kill(worker)
