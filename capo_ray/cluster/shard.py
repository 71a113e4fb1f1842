"""The Ray actor around an aggregator: takes in what rollout workers hand to it, and answers the driver.

Leaves out what is made of responses (aggregator) and when a group is done (arrivals).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

import ray

from capo_ray.cluster.actors import Member, loading, spans_of
from capo_ray.cluster.arrivals import Arrivals, Errand, Handed
from capo_ray.cluster.gauges import Badge, publish_always
from capo_ray.cluster.pulse import Heart, Pulse
from capo_ray.critics.budget import Sampled
from capo_ray.critics.canaries import Canary
from capo_ray.records.trace import Span
from capo_ray.types import GroupSummary, Metrics, Prompt, Rollout


class AggregatorActor(Member):
    def __init__(self, factory: Callable[..., Any], shard: int, badge: Badge | None = None) -> None:
        self._heart = Heart()
        self._spans = spans_of(badge)
        self._arrivals = Arrivals()
        with loading():
            self._aggregator = factory(shard=shard, put=ray.put)
        self._badge = badge
        if badge is not None:
            publish_always(partial(self._all_totals, badge))

    async def ready(self) -> None:
        pass

    async def pulse(self) -> Pulse:
        return self._heart.beat()

    async def take(self, handed: Sequence[Handed]) -> None:
        """Begin what is to be done about each of some responses."""
        for prompt, rollout, errand in handed:
            self._arrivals.begin(prompt, rollout, errand, self._work(prompt, rollout, errand))

    async def _work(self, prompt: Prompt, rollout: Rollout, errand: Errand) -> Any:
        name = "judge" if errand.kind == "score" else errand.kind
        with self._spans.of(name, step=errand.step, prompt=prompt.id, response=rollout.index):
            return await self._done(prompt, rollout, errand)

    def _done(self, prompt: Prompt, rollout: Rollout, errand: Errand) -> Coroutine[Any, Any, Any]:
        if errand.kind == "score":
            return self._aggregator.score(prompt, rollout, errand.seed, errand.step)
        if errand.kind == "verify":
            return self._aggregator.verify(prompt, rollout)
        return self._aggregator.check(prompt, rollout)

    async def rollouts(self, prompt: Prompt, errand: Errand) -> tuple[Rollout, ...]:
        """That have come so far."""
        return self._arrivals.rollouts(prompt, errand)

    async def held(self, prompt: Prompt, errand: Errand) -> list[int]:
        """Indices of the responses that have come so far."""
        return [rollout.index for rollout in self._arrivals.rollouts(prompt, errand)]

    async def sampled(self, prompt: Prompt, errand: Errand, read: object = None) -> tuple[Sampled, ...]:
        """Once all that have come are verified, and `read`, what `rollouts` gave of them, is there."""
        await self._arrivals.end(prompt, errand)
        return self._aggregator.sampled(prompt)

    async def checked(self, prompt: Prompt, errand: Errand) -> list[Metrics]:
        """What is counted of each response, once all that have come are verified."""
        return await self._arrivals.end(prompt, errand)

    async def judge_group(self, prompt: Prompt, seed: int, step: int) -> None:
        await self._aggregator.judge_group(prompt, seed, step)

    async def leave_group(self, prompt: Prompt) -> None:
        self._aggregator.leave_group(prompt)

    async def close_group(self, prompt: Prompt, errand: Errand, num_samples: int, read: object = None) -> GroupSummary:
        """Once all that have come are judged; `read` as in `sampled`."""
        await self._arrivals.end(prompt, errand)
        with self._spans.of("vote", step=errand.step, prompt=prompt.id):
            return self._aggregator.close(prompt, errand.step, num_samples)

    async def begin_canaries(self, canaries: Sequence[Canary]) -> None:
        self._aggregator.begin_canaries(canaries)

    async def canaries_done(self) -> None:
        await self._aggregator.canaries_done()

    async def write_samples(self, step: int, spare: Collection[str]) -> None:
        self._aggregator.write_samples(step, spare)

    async def failure(self) -> str:
        return self._aggregator.failure()

    async def spans(self) -> list[Span]:
        return self._spans.take()

    async def metrics(self) -> Metrics:
        return self._aggregator.metrics()

    async def engines(self) -> dict[str, Metrics]:
        return self._aggregator.engines()

    async def totals(self) -> Metrics:
        return self._aggregator.totals()

    def _all_totals(self, badge: Badge) -> dict[Badge, Metrics]:
        """Of this shard, and of the critics that it asks and that are no actors."""
        engines = self._aggregator.engines().items()
        critics = {Badge(badge.run, "critic", f"{name} from {badge.actor}"): totals for name, totals in engines}
        return {badge: self._aggregator.totals(), **critics}

    async def close(self) -> None:
        await self._aggregator.end()
