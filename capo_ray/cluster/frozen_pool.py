"""Rollout workers whose weights never move, as one engine: several copies of a model that only answer.

A worker that dies is started again by Ray, and what it had not delivered is sampled elsewhere. Leaves out routing
(rollout_pool) and everything else of a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from capo_ray.cluster.gate import Gate
from capo_ray.cluster.patience import when_up
from capo_ray.cluster.placement import Make, Team
from capo_ray.cluster.rollout_pool import RolloutPool
from capo_ray.config.run import Config
from capo_ray.planning.bundles import actor_name
from capo_ray.types import Prompt, Rollout, Sampling


class FrozenPool:
    """The part of protocols.RolloutEngine that answers."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers
        self._pool = RolloutPool(workers, Gate(), revive=self._ready)

    async def _ready(self) -> None:
        await asyncio.gather(
            *(when_up(worker, f"{actor_name('rollout', n)} to start") for n, worker in enumerate(self._workers))
        )

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        async def nothing_kept() -> tuple[int, ...]:
            return ()

        await self._pool.revive()  # weights never move here, so nobody else brings a dead worker back
        found: list[Rollout] | None = await self._pool.generate(
            lambda worker, seeds: worker.sample.remote(prompt, sampling, seeds),
            seeds,
            nothing_kept,
            max_tokens=sampling.max_tokens,
        )
        for rollout in found or ():
            yield rollout


@asynccontextmanager
async def frozen_pool(config: Config, make: Make) -> AsyncIterator[FrozenPool]:
    """All of `rollout.workers`, started, and gone at the end. Inside a Ray session. Raises NotEnough."""
    async with Team(config, config.name, ["rollout"]) as team:
        workers = team.hire("rollout", make)
        await team.ready()
        yield FrozenPool(list(workers.values()))
