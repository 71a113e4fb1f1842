"""The rollout workers: who samples which prompt, and what happens when one dies.

A group goes to the worker with the fewest responses outstanding, as a whole, so that its prompt is computed once. What
a worker that died had not delivered is sampled again elsewhere from the same seeds. One that answers its pulse and
delivers nothing is ended. Leaves out what becomes of a response (aggregator).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError

from capo_ray.cluster.faults import cause_of
from capo_ray.cluster.gate import Gate
from capo_ray.types import Prompt, Sampling

log = logging.getLogger(__name__)

SLOWEST_S = 1.0
"""For a token of a response. A tenth of the slowest pace that anybody would wait for."""
LEAST_S = 600.0
"""Whatever is sampled: the longest prompts on the slowest engines, and an engine that compiles on its first request."""


class RolloutPool:
    """Routes groups to workers. Lives on the driver's event loop."""

    def __init__(
        self,
        workers: Sequence[Any],
        gate: Gate,
        *,
        revive: Callable[[], Awaitable[None]],
        least_s: float = LEAST_S,
    ) -> None:
        """Sampling shares `gate`. `revive` brings dead workers back with the current weights, or raises. A worker that
        delivers nothing for as long as its longest response may take, or `least_s`, is ended."""
        self.workers = list(workers)
        self._gate = gate
        self._revive = revive
        self._reviving = asyncio.Lock()
        self._least_s = least_s
        self._outstanding = [0] * len(self.workers)
        self._delivered = [0.0] * len(self.workers)
        """When each last did."""
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
            number, deliveries = await self._sample(prompt, sampling, missing, deliver)
            try:
                outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
            except asyncio.CancelledError:
                _cancel(deliveries)
                raise
            for outcome in outcomes:
                if isinstance(outcome, int):
                    missing.pop(outcome)
                elif self._is_death(number, outcome):  # what it had promised is sampled again
                    self._mark_dead(number, outcome)
                else:
                    raise outcome

    async def _sample(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seeds: Mapping[int, int],
        deliver: Callable[[Any], Awaitable[int]],
    ) -> tuple[int, list[asyncio.Future[int]]]:
        """The worker, and the deliveries begun, one per response that it promised; fewer than asked for when it died.

        Holds the gate until the last response is sampled, not until it is judged.
        """
        async with self._gate.shared():
            if len(self._dead) == len(self.workers):
                await self.revive()
            number, share = self._idlest(), len(seeds)
            self._outstanding[number] += share
            deliveries: list[asyncio.Future[int]] = []
            try:
                async for reference in self._responses(number, prompt, sampling, seeds):
                    deliveries.append(asyncio.ensure_future(deliver(reference)))
            except RayActorError as error:
                if not self._is_death(number, error):
                    raise
                self._mark_dead(number, error)
            except BaseException:
                _cancel(deliveries)
                raise
            finally:
                self._outstanding[number] -= share
            return number, deliveries

    async def _responses(
        self, number: int, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]
    ) -> AsyncIterator[Any]:
        """References, as they are finished. Raises RayActorError, also where the worker had to be ended."""
        worker, limit_s = self.workers[number], max(self._least_s, SLOWEST_S * sampling.max_tokens)
        stream = worker.generate.options(num_returns="streaming").remote(prompt, sampling, dict(seeds))
        begun = monotonic()
        while True:
            upcoming = asyncio.ensure_future(anext(stream, None))
            try:
                while not (await asyncio.wait((upcoming,), timeout=limit_s / 10))[0]:
                    silent_s = monotonic() - max(begun, self._delivered[number])
                    if silent_s >= limit_s:
                        log.error("rollout worker %d has delivered nothing for %.0f s: it is ended", number, silent_s)
                        ray.kill(worker, no_restart=False)
                    elif silent_s >= limit_s / 2:
                        log.warning("waiting for a response of rollout worker %d since %.0f s", number, silent_s)
                reference = upcoming.result()
            finally:
                upcoming.cancel()
            if reference is None:
                return
            self._delivered[number] = monotonic()
            yield reference

    def _is_death(self, number: int, error: BaseException) -> bool:
        """Whether it was worker `number` that died, and not another actor on the way of its response."""
        return isinstance(error, RayActorError) and error.actor_id == self.workers[number]._actor_id.hex()

    def _mark_dead(self, number: int, error: BaseException) -> None:
        if number not in self._dead:
            self._dead.add(number)
            self.num_deaths += 1
            log.error("rollout worker %d died: %s", number, cause_of(error))

    def _idlest(self) -> int:
        alive = [number for number in range(len(self.workers)) if number not in self._dead]
        return min(alive, key=lambda number: self._outstanding[number])


def _cancel(deliveries: Sequence[asyncio.Future[int]]) -> None:
    for delivery in deliveries:
        delivery.cancel()
