"""The Ray actors around engines: plain classes, with no logic of their own.

Each gets a factory, a function of an importable module, and calls it in its own process, so that the driver never
imports an engine. Leaves out how many there are and where (pools, placement), and the aggregator shards (shard).
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from capo_ray.cluster import nonfinite
from capo_ray.cluster.arrivals import Courier, Errand
from capo_ray.cluster.gauges import Badge, publish
from capo_ray.cluster.lifeline import Lifeline
from capo_ray.cluster.pulse import Heart, Pulse
from capo_ray.engines.ports import free_port
from capo_ray.engines.protocols import Message, Part, Replies, Stage, UpdateBatch, WeightReceipt
from capo_ray.records.busy import Busy
from capo_ray.records.trace import Span, Spans
from capo_ray.types import Metrics, Prompt, Rollout, Sampling, TrainSequence, Update

Ranks = Sequence[tuple[str, str]]
"""Name and namespace of each."""
FETCH_S = 60.0
"""Seconds for the responses to one prompt to come."""
GPUS_S = 600.0
"""Seconds for trainer ranks that start too to say which GPUs they have."""


@contextmanager
def loading() -> Iterator[None]:
    """Without garbage collection, and what was made here is no object of later ones: libraries and engines stay to the
    end. Looking through them is a fifth of the time that importing vLLM takes."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def see_gpus_of(ranks: Ranks) -> None:
    """Have the GPUs of trainer `ranks`, in their order, before anything here looks for some; without ranks those that
    Ray gave. Asked by name: Ray may start this actor again when nothing holds a handle. Raises TimeoutError where one
    does not say."""
    if not ranks:
        return
    asked = {ray.get_actor(*rank).gpu.remote(): rank[0] for rank in ranks}
    if silent := ray.wait(list(asked), num_returns=len(asked), timeout=GPUS_S)[1]:
        names = ", ".join(asked[one] for one in silent)
        raise TimeoutError(f"{names}: which GPUs these have they have not said within {GPUS_S:.0f} s; see logs/")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ray.get(list(asked)))


class Member:
    """What every actor has: a pulse, and what Ray's dashboard shows of it beside its name."""

    _badge: Badge | None = None
    """None too while it is made, which may fail: Ray asks for the name then."""
    _heart: Heart
    _spans: Spans

    def __repr__(self) -> str:
        badge = self._badge
        return f"{badge.actor}: {badge.duty}" if badge and badge.duty else type(self).__name__


class EngineActor(Member):
    """What actors of engines on vLLM share."""

    def __init__(self, factory: Callable[[], Any], badge: Badge | None = None, ranks: Ranks = ()) -> None:
        """`ranks`: of the trainer, those whose GPUs it shares."""
        see_gpus_of(ranks)
        with loading():
            self._engine = factory()
        self._alive = Lifeline(self._engine)
        self._heart = Heart()
        self._spans = spans_of(badge)

    async def ready(self) -> str:
        return self._engine.name

    async def complete(self, messages: Sequence[Message], sampling: Sampling, n: int, seed: int) -> Replies:
        """Of an engine that judges."""
        with self._alive(), self._spans.of("judge", critiques=n):
            return await self._engine.complete(messages, sampling, n=n, seed=seed)

    async def pulse(self) -> Pulse:
        with self._alive():
            await self._engine.pulse()
        return self._heart.beat()

    async def opened(self) -> bool:
        """This and the next three: of an engine that holds its GPU in turns with others (engines.sleeper)."""
        return self._engine.opened

    async def open(self) -> None:
        await self._engine.open()

    async def sleep(self) -> None:
        with self._alive():
            await self._engine.sleep()

    async def wake(self, parts: Collection[Part]) -> None:
        with self._alive():
            await self._engine.wake(parts)

    async def spans(self) -> list[Span]:
        return self._spans.take()

    async def close(self) -> None:
        self._engine.close()


def spans_of(badge: Badge | None) -> Spans:
    return Spans(badge is not None and badge.traced)


class RolloutActor(EngineActor):
    def __init__(self, factory: Callable[[], Any], badge: Badge | None = None, ranks: Ranks = ()) -> None:
        super().__init__(factory, badge, ranks)
        self._stages = {"sync": Busy()}
        self._courier = Courier()
        self._badge = badge
        publish(badge, self._totals, lambda: self._engine.judging())

    async def sample(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> list[Rollout]:
        """As they were finished."""
        with self._alive():
            return [rollout async for rollout in self._engine.generate(prompt, sampling, seeds)]

    async def sample_for(
        self, shard: Any, errand: Errand, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]
    ) -> None:
        """Hand each to the aggregator `shard` when it is finished; returns when the shard has all of them."""
        with self._alive(), self._spans.of("sample", step=errand.step, prompt=prompt.id, responses=len(seeds)):
            taken = [
                self._courier.hand(shard, (prompt, rollout, errand))
                async for rollout in self._engine.generate(prompt, sampling, seeds)
            ]
        await asyncio.gather(*taken)

    async def take_weights(self, stage: Stage, given: Mapping[str, Any]) -> WeightReceipt | None:
        with self._alive(), self._stages["sync"], self._spans.of("sync", stage=stage):
            return await self._engine.take_weights(stage, given)

    async def judging(self) -> Metrics:
        """Totals of an engine that judges too."""
        return self._engine.judging()

    async def metrics(self) -> Metrics:
        return self._totals()

    def _totals(self) -> Metrics:
        return {**self._engine.metrics(), "version": float(self._engine.version), **stage_seconds(self._stages)}


class CriticActor(EngineActor):
    def __init__(self, factory: Callable[[], Any], badge: Badge | None = None, ranks: Ranks = ()) -> None:
        super().__init__(factory, badge, ranks)
        self._badge = badge
        publish(badge, self._engine.metrics)

    async def judging(self) -> Metrics:
        return self._engine.metrics()


class TrainerActor(Member):
    """One rank. `start` is apart from the constructor, since rank 0's address must be known to all before."""

    def __init__(
        self,
        factory: Callable[..., Any],
        make_sender: Callable[..., Any],
        rank: int,
        badge: Badge | None = None,
    ) -> None:
        """`factory(rank=, host=, port=)` makes the engine; `make_sender(handles, engine=, rank=, host=)` its
        end of sync; host and port are rank 0's."""
        self._factory = factory
        self._make_sender = make_sender
        self._rank = rank
        self._host = ""
        self._engine: Any = None
        self._sender: Any = None
        self._stages = {stage: Busy() for stage in ("score", "update", "publish", "save", "restore")}
        self._tokens = 0
        self._version = -1
        self._heart = Heart()
        self._spans = spans_of(badge)
        self._badge = badge
        publish(badge, self.metrics)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """On a thread of its own (placement), so that it answers during an update too."""
        return self._heart.beat()

    @ray.method(concurrency_group="pulse")
    def gpu(self) -> str:
        """That Ray gave this rank, by number or UUID, as the node's CUDA_VISIBLE_DEVICES has it."""
        (found,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return found

    def address(self) -> tuple[str, int]:
        """A host and a free port of this process's machine, for the ranks' rendezvous."""
        return ray.util.get_node_ip_address(), free_port("")

    def start(self, host: str, port: int) -> None:
        self._host = host
        with loading():
            self._engine = self._factory(rank=self._rank, host=host, port=port)

    def connect(self, handles: Sequence[Any]) -> None:
        """Open the weight transfer to the rollout workers behind `handles`; one that was open before is released."""
        if self._sender is not None:
            self._sender.close()
        self._sender = self._make_sender(handles, engine=self._engine, rank=self._rank, host=self._host)

    def update(
        self,
        keep_in: str,
        scale: tuple[float, float],
        layout: Sequence[Sequence[Sequence[tuple[int, int]]]],
        denominators: Sequence[float],
        *groups: Any,
    ) -> Update:
        """`layout` says [optimizer step][micro-batch] which (group, member) of `groups` this rank trains on; `scale` is
        (centre, spread) of the advantages. Where a gradient is not finite it is all written to the folder `keep_in`."""
        chosen: list[list[list[TrainSequence]]] = [
            [[groups[group][member] for group, member in micro_batch] for micro_batch in step] for step in layout
        ]
        centre, spread = scale
        batch = UpdateBatch(micro_batches=chosen, denominators=denominators, centre=centre, spread=spread)
        before = self._engine.step
        with self._stages["update"], self._spans.of("update"):
            update: Update = self._engine.update(batch)
        if update.metrics["nonfinite_steps"]:
            nonfinite.write_share(Path(keep_in), self._rank, batch, optimizer_step=before)
        sequences = (sequence for step in chosen for micro_batch in step for sequence in micro_batch)
        self._tokens += sum(len(sequence.prompt_ids) + len(sequence.token_ids) for sequence in sequences)
        return update

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Any], old: bool) -> None:
        """`responses`: for each prompt a reference to all of its own. They are fetched here and not by Ray: a rank that
        loses one must still say so to its peers."""
        import ray
        from ray.exceptions import RayError

        try:
            groups: list[Sequence[Rollout]] | None = [ray.get(group, timeout=FETCH_S) for group in responses]
        except RayError:
            groups = None
        with self._stages["score"], self._spans.of("score"):
            self._engine.score(None if groups is None else _sequences(prompts, groups), old=old)

    def publish_weights(self, version: int) -> str:
        with self._stages["publish"], self._spans.of("sync", version=version):
            checksum: str = self._sender.send(self._engine.weights(), version)
        self._version = version
        return checksum

    def save(self, path: str) -> None:
        with self._stages["save"], self._spans.of("save"):
            self._engine.save(path)

    def restore(self, path: str) -> None:
        with self._stages["restore"], self._spans.of("restore"):
            self._engine.restore(path)

    def save_pretrained(self, path: str) -> None:
        with self._stages["save"], self._spans.of("save"):
            self._engine.save_pretrained(path)

    def sleep(self) -> None:
        self._engine.sleep()

    def wake(self) -> None:
        self._engine.wake()

    def give_back(self) -> None:
        self._engine.give_back()

    def spans(self) -> list[Span]:
        return self._spans.take()

    def metrics(self) -> Metrics:
        """Of this rank, since its start. Busy is what its stages took."""
        seconds = stage_seconds(self._stages)
        counts = {"trained_tokens": float(self._tokens), "version": float(self._version)}
        return {**counts, "busy_s": sum(seconds.values()), **seconds}

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def _sequences(prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]]) -> list[TrainSequence]:
    """Before anything is known of them but their tokens."""
    return [
        TrainSequence(
            prompt_ids=prompt.token_ids,
            token_ids=rollout.token_ids,
            advantages=(0.0,) * len(rollout.token_ids),
            logprobs=rollout.logprobs,
        )
        for prompt, rollouts in zip(prompts, groups, strict=True)
        for rollout in rollouts
        if rollout.token_ids
    ]


def stage_seconds(stages: Mapping[str, Busy]) -> Metrics:
    return {f"stage_s_{name}": busy.seconds for name, busy in stages.items()}
