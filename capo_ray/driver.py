"""The loop: collect, update, sync, write down.

`train` holds references and summaries, never payloads. Pipelining is one number: with `max_staleness` k, k more batches
are in flight while one is trained on. At 0 a run that is stopped and resumed makes the numbers of one that never was;
above 0 the first k batches after a resume are fresher than they would have been. A run goes back to its last
checkpoint by calling `train` again. Leaves out everything that touches Ray, an engine or a file; a Crew does that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import Protocol

from capo_ray.types import Batch, Metrics, Update

log = logging.getLogger(__name__)


class Crew(Protocol):
    """The running system, as the loop sees it."""

    async def restore(self) -> int:
        """Bring the newest checkpoint back, if there is one; the step to go on with."""
        ...

    async def collect(self, step: int) -> Batch:
        """Sample, judge and score the prompts of `step`. The version that samples is fixed when this first runs."""
        ...

    async def update(self, batch: Batch) -> Update:
        """Train on `batch`; raises when it must not be trained on."""
        ...

    async def sync(self, version: int) -> None:
        """Give every rollout worker the trainer's weights as `version`; nobody samples meanwhile."""
        ...

    async def evaluate(self, step: int) -> None:
        """Measure the policy after `step` steps on held-out prompts and write that down, unless there are none or it
        is written down already."""
        ...

    async def record(self, batch: Batch, update: Update, seconds: Metrics) -> None:
        """Write down one step; raises when the run must not go on."""
        ...

    async def save(self, step: int) -> None:
        """Write the checkpoint from which step `step` is the next."""
        ...


class StaleSample(RuntimeError):
    """A sample is older than `max_staleness`: a bug, and never trained on."""


async def train(
    crew: Crew, *, steps: int, max_staleness: int, checkpoint_every: int = 0, evaluate_every: int = 0
) -> None:
    """Run steps until `steps` are done. Saves and evaluates at the end, evaluates before the first step, and does each
    in between every so many steps (0: not)."""
    first = await crew.restore()
    if first >= steps:
        log.warning("all %d steps were done before; nothing is left to train. Set steps higher to go on", steps)
    await crew.sync(first)
    if first == 0 or is_due(first, evaluate_every, steps):  # it may have been saved and not evaluated
        await crew.evaluate(first)
    in_flight: deque[asyncio.Task[Batch]] = deque()
    try:
        for step in range(first, steps):
            while len(in_flight) <= max_staleness and step + len(in_flight) < steps:
                in_flight.append(asyncio.create_task(crew.collect(step + len(in_flight))))
                await asyncio.sleep(0)  # let it take the gate, so that its version does not depend on timing
            start = monotonic()
            batch = await in_flight.popleft()
            refuse_stale(batch, step, max_staleness)
            if not any(group.lengths and group.has_credit for group in batch.groups):
                log.warning("step %d: no token of any response has an advantage; the step teaches nothing", step)
            waited = monotonic()
            update = await crew.update(batch)
            updated = monotonic()
            await crew.sync(step + 1)
            seconds = {"wait": waited - start, "update": updated - waited, "sync": monotonic() - updated}
            await crew.record(batch, update, seconds | {"step": monotonic() - start})
            if is_due(step + 1, checkpoint_every, steps):
                await crew.save(step + 1)
            if is_due(step + 1, evaluate_every, steps):
                await crew.evaluate(step + 1)
    finally:
        await cancel(in_flight)


def is_due(done: int, every: int, steps: int) -> bool:
    """Whether `done` of `steps` are a time for what is done every `every` steps (0: not) and after the last one."""
    return done == steps or (every > 0 and done % every == 0)


def refuse_stale(batch: Batch, version: int, max_staleness: int) -> None:
    """Raises StaleSample when any group of `batch` was sampled more than `max_staleness` versions before `version`."""
    for group in batch.groups:
        if group.lengths and version - group.oldest_version > max_staleness:
            raise StaleSample(
                f"prompt {group.prompt_id!r} of step {batch.step} was sampled by policy version "
                f"{group.oldest_version}, version {version} is trained now, and max_staleness is {max_staleness}"
            )


async def cancel(tasks: deque[asyncio.Task[Batch]]) -> None:
    """Cancel what is in flight and wait until it is gone."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.debug("a batch in flight had failed: %s", outcome)
