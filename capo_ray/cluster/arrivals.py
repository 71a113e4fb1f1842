"""What becomes of the responses that rollout workers hand to an aggregator shard, from when they come until all of a
group are done.

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
