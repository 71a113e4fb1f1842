"""Critic actors as the CriticEngine protocol, so that the judging service need not know of Ray.

Leaves out routing, deadlines and retries (critics, routing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from capo_ray.engines.protocols import Message, Replies
from capo_ray.types import Metrics, Sampling


class RemoteCritic:
    """One critic actor."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        call = self._actor.complete.remote([dict(message) for message in messages], sampling, n, seed)
        try:
            return await call
        except asyncio.CancelledError:
            ray.cancel(call)  # else the engine would finish a critique that nobody waits for
            raise

    def metrics(self) -> Metrics:
        """Nothing: the actor counts."""
        return {}
