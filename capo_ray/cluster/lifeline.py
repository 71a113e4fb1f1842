"""An actor whose engine died ends too: Ray starts both again, and what was asked of it goes to others.

vLLM runs an engine in a process of its own. When that is gone, some calls raise and some are never answered, and the
actor would live on without use. Leaves out who notices that an actor ended (rollout_pool, routing, restarts).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Mortal(Protocol):
    name: str

    @property
    def dead(self) -> bool:
        """Whether the engine's own process ended, and not because it was closed."""
        ...

    async def pulse(self) -> None:
        """Returns when the engine's own process has answered; see `pulse`."""
        ...


def _end() -> None:
    os._exit(1)  # Ray takes a polite end for the actor's own wish and does not start it again


class Lifeline:
    """Ends this process when `engine` is dead: at a call that fails, or within `every_s` seconds."""

    def __init__(self, engine: Mortal, *, every_s: float = 1.0, end: Callable[[], None] = _end) -> None:
        self._engine = engine
        self._every_s = every_s
        self._end = end
        threading.Thread(target=self._watch, daemon=True, name="lifeline").start()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around whatever is asked of the engine: a caller is to see the actor die, not an error of the engine."""
        try:
            yield
        except Exception:
            self._check()
            raise

    def _watch(self) -> None:
        while not self._check():
            time.sleep(self._every_s)

    def _check(self) -> bool:
        if not self._engine.dead:
            return False
        print(f"{self._engine.name}: the engine's process died, and this one ends with it", file=sys.stderr, flush=True)
        self._end()
        return True
