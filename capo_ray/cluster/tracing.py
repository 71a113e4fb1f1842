"""A crew whose every doing goes into the trace of the run, with what its actors did meanwhile.

Leaves out what actors keep spans of (actors, shard) and the file (records.trace).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError

from capo_ray.cluster.crew import RayCrew
from capo_ray.records.trace import Span, Spans, TraceFile
from capo_ray.types import Batch, Metrics, Update


class TracedCrew:
    """See training.driver.Crew. Does what `crew` does; writes to `file` when a step is recorded, and at the end."""

    def __init__(self, crew: RayCrew, actors: Mapping[str, Any], file: TraceFile) -> None:
        """`actors`: by name."""
        self._crew = crew
        self._actors = actors
        self._file = file
        self._spans = Spans(on=True)

    async def restore(self) -> int:
        with self._spans.of("restore"):
            return await self._crew.restore()

    async def collect(self, step: int) -> Batch:
        with self._spans.of("collect", step=step):
            return await self._crew.collect(step)

    async def update(self, batch: Batch) -> Update:
        with self._spans.of("update", step=batch.step):
            return await self._crew.update(batch)

    async def sync(self, version: int) -> None:
        with self._spans.of("sync", version=version):
            await self._crew.sync(version)

    async def evaluate(self, step: int) -> None:
        with self._spans.of("evaluate", step=step):
            await self._crew.evaluate(step)

    async def record(self, batch: Batch, update: Update, seconds: Metrics) -> None:
        with self._spans.of("record", step=batch.step):
            await self._crew.record(batch, update, seconds)
        await self._write()

    async def save(self, step: int) -> None:
        with self._spans.of("save", step=step):
            await self._crew.save(step)

    async def export(self, step: int) -> None:
        with self._spans.of("export", step=step):
            await self._crew.export(step)

    async def export_policy(self) -> None:
        with self._spans.of("export"):
            await self._crew.export_policy()
        await self._write()

    async def _write(self) -> None:
        """What everybody has done since the last time."""
        answers = await asyncio.gather(*map(_spans_of, self._actors.values()))
        self._file.write({"driver": self._spans.take(), **dict(zip(self._actors, answers, strict=True))})


async def _spans_of(actor: Any) -> list[Span]:
    """None of one that is gone: whoever needs it finds out."""
    try:
        spans: list[Span] = await actor.spans.remote()
    except RayActorError:
        return []
    return spans
