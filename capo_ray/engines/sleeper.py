"""An engine that holds its GPU in turns with others: opened when its first turn comes, asleep between two.

So an actor that is started again while others are awake takes none of their memory: an engine that was never opened
sleeps deepest. Whatever is asked of one whose turn it is not is refused, since vLLM would hold it without an end.
Leaves out whose turn it is (cluster.turns) and how an engine gives memory back (vllm_engine, cpu_worker).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from capo_ray.engines.protocols import WHOLE, Message, NotItsTurn, Part, Replies, Stage, WeightReceipt
from capo_ray.types import Metrics, Prompt, Rollout, Sampling


class Sleeper:
    """See protocols.RolloutEngine and CriticEngine, whichever `open` makes, and Sleeping."""

    def __init__(self, open_engine: Callable[[], Any], name: str) -> None:
        """`open_engine` blocks until the engine is there, awake."""
        self.name = name
        self._open = open_engine
        self._engine: Any = None
        self._awake: frozenset[Part] = frozenset()
        self._synced = False
        """Whether weights have come since it was opened or slept, which sampling wants."""
        self._changing = asyncio.Lock()

    @property
    def opened(self) -> bool:
        return self._engine is not None

    async def open(self) -> None:
        """Have all of its memory, for which it needs its GPU alone."""
        async with self._changing:
            if self._engine is None:
                self._engine = await asyncio.to_thread(self._open)
                self._awake = frozenset(WHOLE)

    async def wake(self, parts: Collection[Part]) -> None:
        """Have `parts` of its memory and no other."""
        wanted = frozenset(parts)
        async with self._changing:
            if self._engine is None:
                raise NotItsTurn(f"{self.name} has not been opened yet")
            if self._awake - wanted:
                await self._sleep()
            if missing := wanted - self._awake:
                await self._engine.wake(sorted(missing))
                self._awake = wanted

    async def sleep(self) -> None:
        async with self._changing:
            if self._awake:
                await self._sleep()

    async def _sleep(self) -> None:
        self._awake, self._synced = frozenset(), False
        await self._engine.sleep()

    def _with(self, *parts: Part) -> Any:
        if not self._awake.issuperset(parts):
            raise NotItsTurn(f"{self.name} sleeps: its turn is over, or has not come")
        return self._engine

    def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        engine = self._with(*WHOLE)
        if not self._synced:
            raise NotItsTurn(f"{self.name} has no weights yet, or has slept since they came")
        rollouts: AsyncIterator[Rollout] = engine.generate(prompt, sampling, seeds)
        return rollouts

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        replies: Replies = await self._with(*WHOLE).complete(messages, sampling, n=n, seed=seed)
        return replies

    async def take_weights(self, stage: Stage, given: Mapping[str, Any]) -> WeightReceipt | None:
        engine = self._engine if self.opened and stage in ("greet", "connect") else self._with("weights")
        receipt: WeightReceipt | None = await engine.take_weights(stage, given)
        self._synced |= receipt is not None
        return receipt

    @property
    def version(self) -> int:
        return int(self._engine.version) if self.opened else -1

    def metrics(self) -> Metrics:
        made: Metrics = self._engine.metrics() if self.opened else {"busy_s": 0.0}
        return made

    def judging(self) -> Metrics:
        made: Metrics = self._engine.judging() if self.opened else {"busy_s": 0.0}
        return made

    @property
    def dead(self) -> bool:
        return self.opened and bool(self._engine.dead)

    async def pulse(self) -> None:
        if self.opened:
            await self._engine.pulse()

    def close(self) -> None:
        if self.opened:
            self._engine.close()
