"""What all pages of one server share: the run, its index and its metrics, kept up to date beside them.

Leaves out: the pages (see `page`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from pathlib import Path
from time import monotonic, time

import yaml

from capo_ray.ledger import LedgerError
from capo_ray.types import JsonDict
from capo_ray.view.choose import Filter, Written, choose, most_flagged
from capo_ray.view.curves import Metrics
from capo_ray.view.index import Index
from capo_ray.view.records import Entry

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds between two looks at a run directory."""
MANNERS = 1.5
"""Seconds in which a page that was opened has the machine for itself."""
KEPT = 16
"""Answers to filters that are kept."""


class Viewer:
    """One run, for as many readers as there are."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.index = Index(run_dir)
        self.metrics = Metrics(run_dir)
        self.problem = ""
        """Why the run cannot be read on; empty where it can."""
        self._chosen: OrderedDict[tuple[int, Filter], list[Entry]] = OrderedDict()
        self._flagged: tuple[int, list[Written]] = (-1, [])
        self._opened = 0.0

    def look(self, seconds: float) -> bool:
        """Take in what is new, for about `seconds`; whether there was something."""
        try:
            new = self.metrics.refresh()
            changed = self.index.refresh(seconds) or new
        except (LedgerError, OSError, ValueError, KeyError) as error:
            if str(error) != self.problem:
                log.warning("%s", error)
            self.problem = str(error)
            return False
        self.problem = ""
        return changed

    def opened(self) -> None:
        """Somebody waits for a page: nothing is read beside it for a moment."""
        self._opened = monotonic()

    async def watch(self) -> None:
        """Look for ever; pages are served meanwhile."""
        while True:
            while monotonic() < self._opened + MANNERS:
                await asyncio.sleep(0.1)
            changed = await asyncio.to_thread(self.look, 0.1)
            await asyncio.sleep(0.02 if changed else PAUSE)

    @property
    def state(self) -> int:
        """Another number whenever the index is another."""
        return id(self.index.files())

    async def choose(self, wanted: Filter) -> list[Entry]:
        """What `wanted` holds for, in the order of the index."""
        key = (self.state, wanted)
        if key not in self._chosen:
            found = await asyncio.to_thread(choose, self.index, wanted)
            self._chosen[key] = found
            while len(self._chosen) > KEPT:
                self._chosen.popitem(last=False)
        return self._chosen[key]

    async def most_flagged(self) -> list[Written]:
        state, found = self._flagged
        if state != self.state:
            state = self.state
            found = await asyncio.to_thread(most_flagged, self.index.source, self.index.files())
            self._flagged = state, found
        return found

    def config(self) -> JsonDict:
        """Of the run; empty where there is none."""
        path = self.run_dir / "config.yaml"
        if not path.is_file():
            return {}
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        return loaded if isinstance(loaded, dict) else {}

    def status(self) -> str:
        """One line on how far the run is."""
        last, total = self.metrics.last, self.config().get("steps")
        if not last:
            return "waiting for the first step"
        done = f"step {last['step'] + 1}" + (f" of {total}" if total else "")
        if total and last["step"] + 1 >= total:
            return f"{done}, finished"
        return f"{done}, last written {ago(time() - last['time'])} ago"

    def reading(self) -> str:
        """How much of the run is in the index."""
        index = self.index
        count = f"{len(index.entries):,} responses"
        missing = index.num_files - index.num_read
        return f"{count} so far, {missing} of {index.num_files} files to read" if missing > 0 else count


def ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
