"""Nobody samples while weights move: an asyncio gate that many may hold together, or one alone.

Generation holds it shared, a weight sync alone. Whoever waits to hold it alone lets no new sharer in, so that a sync is
never starved; sharers that are inside finish first. Not reentrant. Leaves out: threads and processes (one event loop
holds one gate).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

log = logging.getLogger(__name__)


class Gate:
    """`async with gate.shared(): ...` to sample, `async with gate.exclusive(): ...` to move weights."""

    def __init__(self, name: str = "weights", *, patience_s: float = 30.0) -> None:
        """A wait is logged every `patience_s` seconds, with what it waits for."""
        self._name = name
        self._patience_s = patience_s
        self._waiters: set[asyncio.Future[None]] = set()
        self._num_shared = 0
        self._num_exclusive_waiting = 0
        self._held_alone = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        await self._wait("be shared", lambda: not self._held_alone and not self._num_exclusive_waiting)
        self._num_shared += 1
        try:
            yield
        finally:
            self._num_shared -= 1
            self._wake()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        self._num_exclusive_waiting += 1
        try:
            await self._wait("be held alone", lambda: not self._held_alone and not self._num_shared)
            self._held_alone = True
        finally:
            self._num_exclusive_waiting -= 1
            self._wake()  # a wait that was cancelled lets sharers in again
        try:
            yield
        finally:
            self._held_alone = False
            self._wake()

    async def _wait(self, what: str, may_enter: Callable[[], bool]) -> None:
        """Returns as soon as `may_enter`, without giving way to anyone between the check and the return."""
        start = monotonic()
        while not may_enter():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                done, _ = await asyncio.wait((waiter,), timeout=self._patience_s)
            finally:
                self._waiters.discard(waiter)
            if not done:
                log.warning("gate %s: waiting to %s for %.0f s: %s", self._name, what, monotonic() - start, str(self))

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __str__(self) -> str:
        alone = "one holds it alone" if self._held_alone else "nobody holds it alone"
        return f"{self._num_shared} share it, {alone}, {self._num_exclusive_waiting} wait to hold it alone"
