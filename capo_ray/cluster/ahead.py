"""Trainer ranks score the responses of a batch as soon as the last is sampled, while critics still judge them.

Each rank gets whole groups, dealt in the order of the prompts: what it computes does not depend on who answered first.
Where some are lost on the way the update scores all by itself. Leaves out what is kept (engines.ahead).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from capo_ray.types import Prompt

Groups = Sequence[tuple[Prompt, Any]]
"""Prompts in order, each with a reference to all of its responses, by their index."""


class ScoreAhead:
    """Of one batch. `score` is TrainerGroup.score, or None where an update needs nothing that can be made ahead."""

    def __init__(
        self,
        score: Callable[[Groups], Awaitable[None]] | None,
        prompts: Sequence[Prompt],
        rollouts_of: Callable[[Prompt], Any],
    ) -> None:
        """`rollouts_of`: a reference to all responses to a prompt, once they are there."""
        self._score = score
        self._prompts = prompts
        self._rollouts_of = rollouts_of
        self._there: dict[str, Any] = {}
        self._task: asyncio.Future[None] | None = None

    def sampled(self, prompt: Prompt) -> Any:
        """All responses to `prompt` are there. Returns the reference to them, None where nobody scores them: whatever
        has their shard forget them must wait for it, since calls of an actor that runs several may overtake others."""
        if self._score is None:
            return None
        self._there[prompt.id] = self._rollouts_of(prompt)
        if len(self._there) == len(self._prompts):
            groups = [(prompt, self._there[prompt.id]) for prompt in self._prompts]
            self._task = asyncio.ensure_future(self._score(groups))
        return self._there[prompt.id]

    async def end(self) -> None:
        """Wait for the ranks. Raises what they raise."""
        if self._task is not None:
            await self._task

    def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
