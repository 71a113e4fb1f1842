"""How responses go from a rollout worker to the aggregator shards, and what becomes of them there until all of a group
are done.

A worker hears at once that a response has come, and is done with it; whoever asked for the group hears how it went, and
what went wrong, when all of it is done. Leaves out what is done about a response (aggregator).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from capo_ray.types import Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What a shard is to do about every response of a group."""

    kind: Literal["score", "verify", "check"]
    """Verify and judge; verify, to be judged later; count for an evaluation."""
    seed: int
    """The run's."""
    step: int


Handed = tuple[Prompt, Rollout, Errand]


class Courier:
    """A worker's end. One call to a shard is under way at a time, and what is finished meanwhile goes with the next: a
    call costs a worker and a shard about a millisecond each, whatever it carries. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[Any, list[tuple[Handed, asyncio.Future[None]]]] = {}
        self._carrying: set[asyncio.Task[None]] = set()

    def hand(self, shard: Any, handed: Handed) -> asyncio.Future[None]:
        """Done when the actor `shard` has it; raises then what its call raised."""
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if shard in self._waiting:
            self._waiting[shard].append((handed, there))
        else:
            self._waiting[shard] = [(handed, there)]
            task = asyncio.create_task(self._carry(shard))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)
        return there

    async def _carry(self, shard: Any) -> None:
        while going := self._waiting[shard]:
            self._waiting[shard] = []
            error = await _error_of(shard, [handed for handed, _ in going])
            for _, there in going:
                if not there.done():  # who waited may have been cancelled
                    there.set_result(None) if error is None else there.set_exception(error)
        del self._waiting[shard]


async def _error_of(shard: Any, handed: list[Handed]) -> Exception | None:
    try:
        await shard.take.remote(handed)  # which raises by itself where the object store takes no more
    except Exception as error:
        return error
    return None


class Arrivals:
    """Belongs to one event loop. Groups are told apart by errand, so that a response which comes late, from a worker
    that had died, is no part of a later step's group."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, Errand], dict[int, tuple[Rollout, asyncio.Task[Any]]]] = {}

    def begin(self, prompt: Prompt, rollout: Rollout, errand: Errand, work: Coroutine[Any, Any, Any]) -> None:
        """Do `work` about a response, unless it has come before."""
        group = self._begun.setdefault((prompt.id, errand), {})
        if rollout.index in group:
            work.close()
        else:
            group[rollout.index] = rollout, asyncio.create_task(work)

    def rollouts(self, prompt: Prompt, errand: Errand) -> tuple[Rollout, ...]:
        """Those that have come, by their index."""
        return tuple(rollout for _, (rollout, _) in sorted(self._begun.get((prompt.id, errand), {}).items()))

    async def end(self, prompt: Prompt, errand: Errand) -> list[Any]:
        """What was made of each response of a group, by their index. Raises what the first raised."""
        group = self._begun.pop((prompt.id, errand), {})
        tasks = [task for _, (_, task) in sorted(group.items())]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
