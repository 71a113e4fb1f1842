"""Trainer ranks score the responses of a batch as soon as the last is sampled, while critics still judge them.

Each rank gets whole groups, dealt in the order of the prompts: what it computes does not depend on who answered first.
Where a response is lost on the way the update scores all by itself. Leaves out what is kept (engines.ahead).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from capo_ray.types import Prompt

Groups = Sequence[tuple[Prompt, Sequence[Any]]]
"""Prompts in order, each with references to its responses in any order."""


class ScoreAhead:
    """Of one batch. `score` is TrainerGroup.score, or None where an update needs nothing that can be made ahead."""

    def __init__(
        self, score: Callable[[Groups], Awaitable[None]] | None, prompts: Sequence[Prompt], responses: int
    ) -> None:
        self._score = score
        self._left = len(prompts) * responses
        self._groups: dict[str, tuple[Prompt, list[Any]]] = {prompt.id: (prompt, []) for prompt in prompts}
        self._task: asyncio.Future[None] | None = None

    async def passed_on(self, prompt: Prompt, rollout: Any, deliver: Callable[[Any], Awaitable[int]]) -> int:
        """What `deliver` returns of a response. One that it fails with is sampled again."""
        mine = self._groups[prompt.id][1]
        mine.append(rollout)
        self._left -= 1
        if self._left == 0 and self._score is not None:
            self._task = asyncio.ensure_future(self._score(list(self._groups.values())))
        try:
            return await deliver(rollout)
        except BaseException:
            mine.remove(rollout)
            self._left += 1
            raise

    async def end(self) -> None:
        """Wait for the ranks. Raises what they raise."""
        if self._task is not None:
            await self._task

    def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
