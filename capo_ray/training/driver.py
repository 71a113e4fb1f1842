"""The loop: collect, update, sync, write down.

`train` holds references and summaries, never payloads. Pipelining is one number: with `max_staleness` k, k more batches
are in flight while one is trained on. At 0 a run that is stopped and resumed makes the numbers of one that never was;
above 0 the first k batches after a resume are fresher than they would have been. A run goes back to its last
checkpoint by calling `train` again. Leaves out everything that touches Ray, an engine or a file; a Crew does that.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Iterable
from time import monotonic
from typing import Any, Protocol, TypeVar

from capo_ray.types import Batch, Metrics, Update

log = logging.getLogger(__name__)

T = TypeVar("T")


class Crew(Protocol):
    """The running system, as the loop sees it."""

    async def restore(self) -> int:
        """Bring the newest checkpoint back, if there is one; how many steps are done."""
        ...

    async def collect(self, step: int) -> Batch:
        """Sample, judge and score the prompts of `step`, the first of which is 1. The version that samples is fixed
        when this first runs."""
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
        """Write the checkpoint of `step` steps."""
        ...

    async def export(self, step: int) -> None:
        """Write the policy after `step` steps as a plain model that stays."""
        ...


class StaleSample(RuntimeError):
    """A sample is older than `max_staleness`: a bug, and never trained on."""


class Stop:
    """Whether the loop was told to end."""

    def __init__(self) -> None:
        self._now = asyncio.Event()
        self.asked = False
        """No further step is begun."""
        self.for_good = False
        """The run ends with this loop."""

    def ask(self, *, within_s: float | None = 0.0, for_good: bool = True) -> None:
        """The step at hand has `within_s` seconds (None: as many as it takes); what it waits for then is not waited for
        any longer. To be called in the loop's thread."""
        self.asked, self.for_good = True, self.for_good or for_good
        if within_s == 0:
            self._now.set()
        elif within_s is not None:
            asyncio.get_running_loop().call_later(within_s, self._now.set)

    async def cut(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T | None:
        """What `work` returns; None, with `work` cancelled, if its time is over before."""
        doing, over = asyncio.ensure_future(work), asyncio.ensure_future(self._now.wait())
        try:
            await asyncio.wait((doing, over), return_when=asyncio.FIRST_COMPLETED)
            return None if self._now.is_set() else doing.result()
        finally:
            await cancel((doing, over))


async def train(
    crew: Crew,
    *,
    steps: int,
    max_staleness: int,
    checkpoint_every: int = 0,
    checkpoint_s: float = math.inf,
    evaluate_every: int = 0,
    export_every: int = 0,
    stop: Stop | None = None,
) -> int:
    """Run steps until `steps` are done, or until `stop` is asked; how many are done. Saves and evaluates at the end,
    evaluates before the first step, and does each in between every so many steps (0: not); exports every so many. Saves
    also when the last checkpoint is `checkpoint_s` old, and before it stops."""
    stop = stop or Stop()
    step = saved = await crew.restore()
    if step >= steps:
        log.warning("all %d steps were done before; nothing is left to train. Set steps higher to go on", steps)
    await crew.sync(step)
    if step == 0 or is_due(step, evaluate_every, steps):  # it may have been saved and not evaluated
        await stop.cut(crew.evaluate(step))
    in_flight: deque[asyncio.Task[Batch]] = deque()
    last = monotonic()
    try:
        while step < steps and not stop.asked:
            while len(in_flight) <= max_staleness and step + len(in_flight) < steps:
                in_flight.append(asyncio.create_task(crew.collect(step + len(in_flight) + 1)))
                await asyncio.sleep(0)  # let it take the gate, so that its version does not depend on timing
            start = monotonic()
            if (batch := await stop.cut(in_flight.popleft())) is None:
                break
            refuse_stale(batch, step, max_staleness)
            if not any(group.lengths and group.has_credit for group in batch.groups):
                log.warning("step %d: no token of any response has an advantage; it teaches nothing", batch.step)
            waited = monotonic()
            update = await crew.update(batch)
            updated = monotonic()
            step += 1
            await crew.sync(step)
            seconds = {"wait": waited - start, "update": updated - waited, "sync": monotonic() - updated}
            await crew.record(batch, update, seconds | {"step": monotonic() - start})
            if stop.asked or is_due(step, checkpoint_every, steps) or monotonic() - last >= checkpoint_s:
                await crew.save(step)
                saved, last = step, monotonic()
            if export_every and step % export_every == 0:
                await crew.export(step)
            if is_due(step, evaluate_every, steps) and (step == steps or not stop.asked):  # or whoever goes on does it
                await stop.cut(crew.evaluate(step))
    finally:
        await cancel(in_flight)
    if saved < step:  # told to stop after it
        await crew.save(step)
    return step


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


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel what is in flight and wait until it is gone."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.debug("a batch in flight had failed: %s", outcome)
