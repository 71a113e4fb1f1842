"""The rollout workers: who samples which prompt, and what happens when one dies.

A group goes to the worker with the fewest responses outstanding, as a whole, so that its prompt is computed once. What
a worker that died had not delivered is sampled again elsewhere from the same seeds. One that answers its pulse and
delivers nothing is ended. Responses do not pass through here: workers hand them on. Leaves out what becomes of them
(arrivals, aggregator).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from capo_ray.cluster.faults import cause_of, unwrap
from capo_ray.cluster.gate import Gate
from capo_ray.engines.protocols import NotItsTurn

log = logging.getLogger(__name__)

T = TypeVar("T")

SLOWEST_S = 1.0
"""For a token of a response. A tenth of the slowest pace that anybody would wait for."""
LEAST_S = 600.0
"""Whatever is sampled: the longest prompts on the slowest engines, and an engine that compiles on its first request."""


class _WorkerDied(Exception):
    """In the middle of a group."""


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
        self._had_weights = False

    async def ready_for_weights(self) -> None:
        """Bring every dead worker back, before the trainer sends weights to all. Also those that died while nobody
        asked them for anything: they do not answer, or Ray has started them again and they hold no weights."""
        if self._had_weights:
            answers = await asyncio.gather(*(one.metrics.remote() for one in self.workers), return_exceptions=True)
            for number, answer in enumerate(answers):
                if isinstance(answer, RayActorError):
                    self._mark_dead(number, answer)
                elif isinstance(answer, BaseException):
                    raise answer
                elif answer["version"] < 0:
                    self._mark_dead(number, RuntimeError("it has been started again since the last weights"))
        await self.revive()
        self._had_weights = True

    async def revive(self) -> None:
        """Bring every dead worker back; does nothing when none is dead."""
        async with self._reviving:
            if self._dead:
                log.warning("waiting for rollout workers %s to start again", sorted(self._dead))
                await self._revive()
                self._dead.clear()

    async def generate(
        self,
        ask: Callable[[Any, Mapping[int, int]], Awaitable[T]],
        seeds: Mapping[int, int],
        held: Callable[[], Awaitable[Collection[int]]],
        *,
        max_tokens: int,
    ) -> T | None:
        """Have one worker sample a response per entry of `seeds` (index -> seed), of `max_tokens` at most: what `ask`
        brings back of it. Where it dies another samples what is missing: all but those that are `held`, and are out of
        its hands; None where nothing is."""
        missing = dict(seeds)
        while missing:
            try:
                return await self._sample(ask, missing, max(self._least_s, SLOWEST_S * max_tokens))
            except _WorkerDied:
                there = await held()
                missing = {index: seed for index, seed in seeds.items() if index not in there}
        return None

    async def _sample(
        self, ask: Callable[[Any, Mapping[int, int]], Awaitable[T]], seeds: Mapping[int, int], limit_s: float
    ) -> T:
        """Holds the gate until the last response is sampled, not until it is judged. Raises _WorkerDied."""
        async with self._gate.shared():
            if len(self._dead) == len(self.workers):
                await self.revive()
            number, share = self._idlest(), len(seeds)
            self._outstanding[number] += share
            try:
                return await self._answer(number, ask(self.workers[number], dict(seeds)), limit_s)
            except (RayActorError, RayTaskError) as error:
                if not self._is_death(number, error):
                    raise
                self._mark_dead(number, error)
                raise _WorkerDied from error
            finally:
                self._outstanding[number] -= share

    async def _answer(self, number: int, asked: Awaitable[T], limit_s: float) -> T:
        """What the worker answers. Raises RayActorError, also where it had to be ended."""
        answer, begun = asyncio.ensure_future(asked), monotonic()
        try:
            while not (await asyncio.wait((answer,), timeout=limit_s / 10))[0]:
                silent_s = monotonic() - max(begun, self._delivered[number])
                if silent_s >= limit_s:
                    log.error("rollout worker %d has delivered nothing for %.0f s: it is ended", number, silent_s)
                    ray.kill(self.workers[number], no_restart=False)
                elif silent_s >= limit_s / 2:
                    log.warning("waiting for a response of rollout worker %d since %.0f s", number, silent_s)
            delivered = answer.result()
        finally:
            answer.cancel()
        self._delivered[number] = monotonic()
        return delivered

    def _is_death(self, number: int, error: BaseException) -> bool:
        """Whether it was worker `number` that died, and not another actor on the way of its response. In turns one that
        was started again has no engine before its next turn, and says so."""
        if isinstance(unwrap(error), NotItsTurn):
            return True
        return isinstance(error, RayActorError) and error.actor_id == self.workers[number]._actor_id.hex()

    def _mark_dead(self, number: int, error: BaseException) -> None:
        if number not in self._dead:
            self._dead.add(number)
            self.num_deaths += 1
            log.error("rollout worker %d died: %s", number, cause_of(error))

    def _idlest(self) -> int:
        alive = [number for number in range(len(self.workers)) if number not in self._dead]
        return min(alive, key=lambda number: self._outstanding[number])
