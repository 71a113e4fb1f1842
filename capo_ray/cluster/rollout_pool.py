"""The rollout workers: who samples which prompt, and what happens when one dies.

A group goes to the worker with the fewest responses outstanding, as a whole, so that its prompt is computed once. What
a worker that died had not delivered is sampled again elsewhere from the same seeds. Leaves out when sampling is
allowed (gate) and what becomes of a response (aggregator).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayActorError

from capo_ray.cluster.faults import cause_of
from capo_ray.types import Prompt, Sampling

log = logging.getLogger(__name__)


class RolloutPool:
    """Routes groups to workers. Lives on the driver's event loop."""

    def __init__(self, workers: Sequence[Any], *, revive: Callable[[], Awaitable[None]]) -> None:
        """`revive` brings dead workers back with the current weights; it raises when that cannot be done."""
        self.workers = list(workers)
        self._revive = revive
        self._reviving = asyncio.Lock()
        self._outstanding = [0] * len(self.workers)
        self._dead: set[int] = set()
        self.num_deaths = 0

    async def revive(self) -> None:
        """Bring every dead worker back; does nothing when none is dead."""
        async with self._reviving:
            if self._dead:
                log.warning("waiting for rollout workers %s to start again", sorted(self._dead))
                await self._revive()
                self._dead.clear()

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seeds: Mapping[int, int],
        deliver: Callable[[Any], Awaitable[int]],
    ) -> None:
        """Sample one response per entry of `seeds` (index -> seed) and hand each, by reference, to `deliver` at once.

        `deliver` returns the index of what it was given. Returns when all have been delivered.
        """
        missing = dict(seeds)
        while missing:
            if len(self._dead) == len(self.workers):
                await self.revive()
            number = self._idlest()
            self._outstanding[number] += len(missing)
            share = len(missing)
            try:
                for index in await self._stream(number, prompt, sampling, missing, deliver):
                    missing.pop(index)
            finally:
                self._outstanding[number] -= share

    async def _stream(
        self,
        number: int,
        prompt: Prompt,
        sampling: Sampling,
        seeds: Mapping[int, int],
        deliver: Callable[[Any], Awaitable[int]],
    ) -> list[int]:
        """Indices that worker `number` delivered; fewer than asked for when it died."""
        stream = self.workers[number].generate.options(num_returns="streaming").remote(prompt, sampling, dict(seeds))
        deliveries: list[asyncio.Future[int]] = []
        try:
            async for reference in stream:
                deliveries.append(asyncio.ensure_future(deliver(reference)))
            return list(await asyncio.gather(*deliveries))
        except RayActorError as error:
            self._mark_dead(number, error)
            outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
            return [outcome for outcome in outcomes if isinstance(outcome, int)]
        except BaseException:
            for delivery in deliveries:
                delivery.cancel()
            raise

    def _mark_dead(self, number: int, error: RayActorError) -> None:
        if number not in self._dead:
            self._dead.add(number)
            self.num_deaths += 1
            log.error("rollout worker %d died: %s", number, cause_of(error))

    def _idlest(self) -> int:
        alive = [number for number in range(len(self.workers)) if number not in self._dead]
        return min(alive, key=lambda number: self._outstanding[number])
