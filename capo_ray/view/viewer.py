"""What all pages of one server share: the run, its index and its metrics, kept up to date beside them.

Leaves out: the pages (see `page`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, time

import yaml

from capo_ray.records.ledger import LedgerError
from capo_ray.types import JsonDict
from capo_ray.view.choose import Filter, Written, choose, most_flagged
from capo_ray.view.curves import Metrics
from capo_ray.view.index import Index
from capo_ray.view.records import Entry, Response

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds between two looks at a run directory."""
MANNERS = 1.5
"""Seconds in which a page that was opened has the machine for itself."""
KEPT = 16
"""Answers to filters that are kept."""


class Viewer:
    """One run, for as many readers as there are."""

    def __init__(self, run_dir: Path, *, trust: bool = False) -> None:
        """`trust`: see `records.scheme`."""
        self.run_dir = run_dir
        self.index = Index(run_dir, trust=trust)
        self.metrics = Metrics(run_dir)
        self._unread = ""
        """Why the run cannot be read on; empty where it can."""
        self._config: tuple[object, JsonDict, str] = None, {}, ""
        """The file's state, what it says, and what is wrong with it."""
        self._chosen: OrderedDict[tuple[int, Filter], list[Entry]] = OrderedDict()
        self._flagged: tuple[int, list[Written]] = (-1, [])
        self._opened = 0.0
        self._said = ""

    def look(self, seconds: float) -> bool:
        """Take in what is new, for about `seconds`; whether there was something."""
        try:
            new = self.metrics.refresh()
            changed = self.index.refresh(seconds) or new
        except OSError as error:
            changed, self._unread = False, str(error)
        else:
            self._unread = ""
        self._warn()
        return changed

    def _warn(self) -> None:
        if self.problem != self._said:
            self._said = self.problem
            if self._said:
                log.warning("%s", self._said)

    @property
    def problem(self) -> str:
        """What of the run is not shown, or not as it was, and why; empty where all is."""
        said = [self._unread, self.metrics.problem, self._read_config()[1]]
        if self.metrics.from_zero:
            said.append("an older version wrote this run: its training steps count from 0")
        if broken := self.index.broken:
            first = broken[min(broken)]
            said.append(f"{len(broken)} of {self.index.num_files} files are not shown: {first}")
        if code := sorted(getattr(self.index.source, "replaced", ())):
            said.append(
                f"{', '.join(code)} is code of the run's author, which is not run (trust=true runs it): votes and "
                "credit are those of a majority and of CAPO"
            )
        return "; ".join(filter(None, said))

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
            found = await asyncio.to_thread(most_flagged, self.index)
            self._flagged = state, found
        return found

    def responses(self, entries: Sequence[Entry]) -> list[Response]:
        """In full, but those of files that cannot be read, which are hidden from here on."""
        made = []
        for entry in entries:
            try:
                made.append(self.index.source.response(entry))
            except LedgerError as error:
                self.index.lose(entry.file, error)
        return made

    def config(self) -> JsonDict:
        """Of the run; empty where there is none that can be read."""
        return self._read_config()[0]

    def _read_config(self) -> tuple[JsonDict, str]:
        """And what is wrong with it."""
        path = self.run_dir / "config.yaml"
        state = path.stat() if path.is_file() else None
        stamp = state and (state.st_mtime_ns, state.st_size)
        if stamp != self._config[0]:
            self._config = stamp, *(_loaded(path) if stamp else ({}, ""))
        return self._config[1:]

    def status(self) -> str:
        """One line on how far the run is."""
        last, total = self.metrics.last, self.config().get("steps")
        if not last:
            return "waiting for the first training step"
        done = f"training step {last['step']}"
        if type(total) is int and total > 0:
            done += f" of {total}"
            if last["step"] >= total:
                return f"{done}, finished"
        return f"{done}, last written {ago(time() - last['time'])} ago" if "time" in last else done

    def reading(self) -> str:
        """How much of the run is in the index."""
        index = self.index
        count = f"{len(index.entries):,} responses"
        missing = index.num_files - index.num_read
        return f"{count} so far, {missing} of {index.num_files} files to read" if missing > 0 else count


def _loaded(path: Path) -> tuple[JsonDict, str]:
    try:
        loaded = yaml.safe_load(path.read_bytes())
        if not isinstance(loaded, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        return {}, f"{path} cannot be read: {' '.join(str(error).split())[:200]}"
    return loaded, ""


def ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
