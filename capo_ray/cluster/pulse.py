"""Whether every actor still answers: asked again and again, named when one does not, and ended when it will not.

A process that hangs answers nothing and ends nothing that waits for it. A hang becomes a death here, and deaths are
handled where they always were (rollout_pool, routing, restarts). What is asked is answered beside an actor's work, by a
vLLM engine between two of its steps, so that one which is slow, ten times too, answers in time. With an answer comes
what the actor had to say since the last one, for the terminal. Leaves out what is done about a death.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capo_ray.cluster.patience import ends_within
from capo_ray.cluster.stacks import family, stacks

log = logging.getLogger(__name__)

EVERY_S = 5.0
MOST_LINES = 100
"""Lines of an actor that are kept between two answers; the oldest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """An actor's answer."""

    pid: int
    node: str
    """Ray's id of the machine that it is on."""
    said: tuple[str, ...]
    """What it warned of since its last answer."""


class Heart(logging.Handler):
    """The actor's end: gathers what this process warns of, and says who it is."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: deque[str] = deque(maxlen=MOST_LINES)
        logging.getLogger("capo_ray").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())

    def beat(self) -> Pulse:
        said = tuple(self._said.popleft() for _ in range(len(self._said)))
        return Pulse(pid=os.getpid(), node=ray.get_runtime_context().get_node_id(), said=said)


End = Callable[[Any, Pulse | None], str]
"""Ends an actor's process; returns what it was doing, as far as that can be seen."""
END_S = 60
"""Seconds for that, of which the stacks of a large engine's processes take the most."""


def end_process(actor: Any, of: Pulse | None) -> str:
    """Kill the process that answered so last, and what it had started, on whichever machine it is. One that has not
    answered yet is Ray's to kill, and its stacks are not seen."""
    if of is None:
        ends_within(END_S, lambda: ray.kill(actor, no_restart=False))
        return ""
    if of.node == ray.get_runtime_context().get_node_id():
        return end_tree(of.pid)
    there = NodeAffinitySchedulingStrategy(node_id=of.node, soft=False)
    ending = ray.remote(end_tree).options(num_cpus=0, scheduling_strategy=there).remote(of.pid)
    seen: list[str] = []
    ends_within(END_S, lambda: seen.append(ray.get(ending)))
    return "".join(seen)


def end_tree(pid: int) -> str:
    """SIGKILL ends frozen processes too; children are found before, since they are nobody's afterwards. Returns the
    stacks that they had."""
    seen, those = stacks(pid), family(pid)
    for process in those:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return seen


@asynccontextmanager
async def watching(
    actors: Mapping[str, Any], *, silence_s: float, hung: Path, every_s: float = EVERY_S, end: End = end_process
) -> AsyncIterator[None]:
    """Ask `actors`, by name, for their pulse as long as this lasts. One that answers nothing for half of `silence_s` is
    named, and ended after all of it; what it was doing then is added to its file in the folder `hung`."""
    watches = [
        asyncio.ensure_future(_watch(name, actor, silence_s, every_s, end, hung / f"{name}.txt"))
        for name, actor in actors.items()
    ]
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def _watch(name: str, actor: Any, silence_s: float, every_s: float, end: End, doing: Path) -> None:
    last: Pulse | None = None
    while True:
        await asyncio.sleep(every_s)
        try:
            answer = await _answer(name, actor, silence_s)
        except RayActorError:  # it is gone, or is being started again: for whoever needs it to find out
            last = None
            continue
        if answer is not None:
            last = answer
            for line in answer.said:
                log.warning("%s: %s", name, line)
        else:
            log.error(
                "%s has answered nothing for %g s (cluster.silence_s): it is ended, as if it had died", name, silence_s
            )
            if seen := await asyncio.to_thread(end, actor, last):
                log.error("what %s was doing: %s", name, await asyncio.to_thread(_keep, seen, doing))
            last = None


def _keep(seen: str, file: Path) -> str:
    """Where it is then; a disk that takes nothing keeps nobody from going on."""
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}\n{seen}\n")
    except OSError as error:
        return f"{file} cannot be written ({error.strerror})"
    return str(file)


async def _answer(name: str, actor: Any, silence_s: float) -> Pulse | None:
    """None when there is none within `silence_s`. Raises RayActorError."""
    asked, begun = asyncio.ensure_future(_pulse(actor)), monotonic()
    try:
        if not (await asyncio.wait((asked,), timeout=silence_s / 2))[0]:
            log.warning("%s has answered nothing for %.0f s; it is ended if it stays so", name, monotonic() - begun)
            if not (await asyncio.wait((asked,), timeout=silence_s / 2))[0]:
                return None
            log.warning("%s answers again, after %.0f s", name, monotonic() - begun)
        return asked.result()
    finally:
        asked.cancel()


async def _pulse(actor: Any) -> Pulse:
    pulse: Pulse = await actor.pulse.remote()
    return pulse
