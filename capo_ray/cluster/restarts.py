"""A run that outlives its actors: when one is lost that Ray does not start again, all are, and the work goes on.

Nothing of the old crew survives, so nothing of the old line of weights can be trained on; what the new one begins with
is its own affair (driver.train restores the newest checkpoint). Leaves out which errors are a loss (faults).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TypeVar

from capo_ray.cluster.faults import SessionLost, cause_of, is_loss

log = logging.getLogger(__name__)

Crew = TypeVar("Crew")


async def outlive(
    hire: Callable[[], AbstractAsyncContextManager[Crew]],
    work: Callable[[Crew], Awaitable[None]],
    *,
    max_restarts: int,
    on_restart: Callable[[int], None],
) -> None:
    """Do `work` with a crew; a loss dismisses it and hires another, up to `max_restarts` times. `on_restart` is told
    which one it is, from 1. Whatever else goes wrong is raised as it is, and so is the loss that is one too many."""
    for number in count(1):
        try:
            async with hire() as crew:
                await work(crew)
            return
        except Exception as error:
            if number > max_restarts or not is_loss(error):
                raise
            log.error(
                "%s was lost: %s. Everything is started again from the newest checkpoint (restart %d, at most "
                "%d: cluster.max_restarts)",
                "the Ray session" if isinstance(error, SessionLost) else "an actor",
                cause_of(error).rstrip("."),
                number,
                max_restarts,
            )
        on_restart(number)
