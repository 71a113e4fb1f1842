"""One run, from what it needs to what it leaves: found, started, trained, exported, and told.

Leaves out the command line, messages and exit codes (launch), the parts (build) and the loop (driver).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ray.config.run import Config
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.files.durable import write_text
from capo_ray.leaving import on_interrupt

if TYPE_CHECKING:
    from capo_ray.cluster.crew import RayCrew
    from capo_ray.cluster.notices import Notice
    from capo_ray.cluster.placement import Lend
    from capo_ray.cluster.tracing import TracedCrew
    from capo_ray.training.driver import Stop

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was told to end before its last step, and has; the text says what it could not do for that."""


async def run(config: Config, run_dir: Path, *, lend: Lend | None = None) -> None:
    """One run, from what it needs to what it leaves. With `lend`, which has engines, the Ray session is there too."""
    from rich.console import Console

    from capo_ray.cluster.gauges import RunGauges
    from capo_ray.cluster.restarts import outlive
    from capo_ray.cluster.session import ray_session
    from capo_ray.data.epochs import in_steps
    from capo_ray.records.trace import TraceFile
    from capo_ray.records.tracking import Tracker
    from capo_ray.training.build import prepare, running_crew

    config = in_steps(config)

    @asynccontextmanager
    async def crew() -> AsyncIterator[RayCrew | TracedCrew]:
        """Each with a Ray session of its own, so that a session that was lost is none of the next one's."""
        session = nullcontext() if lend is not None else ray_session(config.cluster, logs=run_dir / "logs")
        with session:
            async with running_crew(config, found, run_dir, tracker, lend, trace) as hired:
                yield hired

    found = prepare(config, run_dir)
    write_config(config, run_dir)
    if found.template is not None:
        (run_dir / "critic_prompt.jinja").write_text(found.template.source, encoding="utf-8")
    tracker = Tracker.open(config, run_dir)
    try:
        opened = closing(TraceFile(run_dir)) if config.tracking.trace else nullcontext()
        with closing(RunGauges(run_dir.name)) as gauges, opened as trace:
            tracker.add(gauges)
            await outlive(
                crew,
                partial(_work, config),
                max_restarts=config.cluster.max_restarts,
                on_restart=tracker.restarted,
                saved=Checkpoints(run_dir, keep=1).newest,
                room_within_s=config.cluster.node_wait_s if config.cluster.address is not None else 0.0,
            )
    finally:
        tracker.finish()
    if (table := tracker.table()) is not None:
        Console().print(table)


async def _work(config: Config, crew: RayCrew | TracedCrew) -> None:
    """Every step that is left, and the policy's folder. Raises Stopped, and MustMove where the run is to go on."""
    from capo_ray.cluster.faults import MustMove, cause_of
    from capo_ray.cluster.session import head_address, while_it_answers
    from capo_ray.training.driver import Stop, train

    stop = Stop()
    training = train(
        crew,
        steps=config.steps,
        max_staleness=config.algorithm.max_staleness,
        checkpoint_every=config.checkpoint_every,
        checkpoint_s=60 * config.checkpoint_minutes or math.inf,
        evaluate_every=config.evaluate_every,
        export_every=config.export_every,
        stop=stop,
    )
    try:
        with told_to_stop(stop, within_s=config.stop_within_s):
            async with told_to_move(stop) as told:
                done = await while_it_answers(training, head_address(), silence_s=config.cluster.silence_s)
    except Exception as error:
        if stop.for_good:
            raise Stopped(f"No further checkpoint could be written: {cause_of(error)}") from error
        raise
    if done < config.steps:
        raise Stopped if stop.for_good else MustMove("; ".join(map(str, told)))
    await crew.export_policy()


@contextmanager
def told_to_stop(stop: Stop, *, within_s: float) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a checkpoint first; a second one leaves at once, and so does the end of `within_s`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def ask() -> None:
        log.warning("told to end: a checkpoint first, within %g s (stop_within_s); once more leaves at once", within_s)
        stop.ask()
        loop.call_later(within_s, task.cancel)

    with on_interrupt(partial(loop.call_soon_threadsafe, ask)):
        yield


@asynccontextmanager
async def told_to_move(stop: Stop) -> AsyncIterator[list[Notice]]:
    """Where machines of the run are told to go the loop is asked to end in time for a checkpoint: the step at hand has
    half of what is left. Yields what was noticed."""
    from capo_ray.cluster.notices import LOOK_S, notice

    heard: list[Notice] = []

    async def heed() -> None:
        silent = False
        while not heard:
            try:
                heard.append(await notice())
            except Exception as error:
                if not silent:
                    log.warning("Ray does not say which machines are told to go: %s", error)
                silent = True
                await asyncio.sleep(LOOK_S)
        (told,) = heard
        then = "the run ends, since Ray's head or this program is there" if told.for_good else "the run leaves"
        log.warning("%s: a checkpoint, then %s", told, then)
        stop.ask(within_s=None if told.within_s is None else told.within_s / 2, for_good=told.for_good)

    heeding = asyncio.create_task(heed())
    try:
        yield heard
    finally:
        heeding.cancel()
        await asyncio.gather(heeding, return_exceptions=True)


def write_config(config: Config, run_dir: Path) -> None:
    """The whole configuration as it was resolved; a resumed run overwrites it with what it goes on with."""
    import yaml

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(run_dir / "config.yaml", text)
