"""How busy something is: what runs, and the seconds in which at least one thing did.

Leaves out what runs: requests of an engine, stages of an actor.
"""

from __future__ import annotations

import time


class Busy:
    """A context that is held by what runs; many may hold it at a time, on one thread. Any thread may read it."""

    def __init__(self) -> None:
        self.running = 0
        self._seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        if not self.running:
            self._since = time.monotonic()
        self.running += 1

    def __exit__(self, *error: object) -> None:
        self.running -= 1
        if not self.running:
            self._seconds += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Since the start, up to now."""
        return self._seconds + (time.monotonic() - self._since if self.running else 0.0)
