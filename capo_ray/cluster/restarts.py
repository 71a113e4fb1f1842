"""A run that outlives its actors: when one is lost that Ray does not start again, all are, and the work goes on.

Nothing of the old crew survives, so nothing of the old line of weights can be trained on; what the new one begins with
is its own affair (training.driver.train restores the newest checkpoint). Where the machines that are left are too few,
a joined cluster is given time to bring the lost one back, or another. Leaves out which errors are a loss (faults).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import count
from time import monotonic
from typing import TypeVar

from capo_ray.cluster.faults import MustMove, NotEnough, SessionLost, cause_of, is_loss

log = logging.getLogger(__name__)

Crew = TypeVar("Crew")

LOOK_S = 10.0
"""Between two looks for room."""


async def outlive(
    hire: Callable[[], AbstractAsyncContextManager[Crew]],
    work: Callable[[Crew], Awaitable[None]],
    *,
    max_restarts: int,
    on_restart: Callable[[int], None],
    saved: Callable[[], object] = lambda: None,
    room_within_s: float = 0.0,
    look_s: float = LOOK_S,
) -> None:
    """Do `work` with a crew; a loss dismisses it and hires another, up to `max_restarts` times in a row: one after
    which what `saved` returns, the newest checkpoint, is another one begins a new row. Work that raises MustMove is
    done with another crew too, and is no loss. `on_restart` is told which one of the run it is, from 1. A crew that
    finds too little room after a loss is hired again until `room_within_s` are
    over. Whatever else goes wrong is raised as it is, and so is the loss that is one too many."""
    in_a_row, before = 0, saved()
    for number in count(1):
        try:
            async with _room(hire, room_within_s if number > 1 else 0.0, look_s) as crew:
                await work(crew)
            return
        except Exception as error:
            if (now := saved()) != before:
                in_a_row, before = 0, now
            if isinstance(error, MustMove):
                log.warning("%s. Everything is started again elsewhere, from the newest checkpoint", error)
            else:
                in_a_row += 1
                if in_a_row > max_restarts or not is_loss(error):
                    raise
                log.error(
                    "%s was lost: %s. Everything is started again from the newest checkpoint (restart %d, at most "
                    "%d without a new checkpoint: cluster.max_restarts)",
                    "the Ray session" if isinstance(error, SessionLost) else "an actor",
                    cause_of(error).rstrip("."),
                    number,
                    max_restarts,
                )
        on_restart(number)


@asynccontextmanager
async def _room(
    hire: Callable[[], AbstractAsyncContextManager[Crew]], within_s: float, look_s: float
) -> AsyncIterator[Crew]:
    """A crew, hired again and again where there is no room for it. Raises NotEnough after `within_s`."""
    begun = monotonic()
    async with AsyncExitStack() as hired:
        while True:
            try:
                crew = await hired.enter_async_context(hire())
                break
            except NotEnough as error:
                if (waited := monotonic() - begun) >= within_s:
                    if not within_s:
                        raise
                    raise NotEnough(
                        f"a machine was lost, and none took its place within {within_s:g} s (cluster.node_wait_s): "
                        f"{error}"
                    ) from error
                log.warning("waiting for the lost machine, or another, since %.0f s: %s", waited, error)
            await asyncio.sleep(look_s)
        yield crew
