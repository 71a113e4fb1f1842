"""Who did what and when, as a file that chrome://tracing and Perfetto show: `tracking.trace`.

    RUN_DIR/trace.json, trace.2.json, ...

Each actor keeps spans of what it does until it is asked for them, once a step (`Spans`); the driver writes them down
(`TraceFile`). The file is the array form of Chrome's trace format, which may lack its last bracket: what was written of
a run that was killed can be read. A run that goes on begins another file. Leaves out what is a span (actors, crew) and
who asks (cluster.tracing).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic, time
from typing import Any

from capo_ray.types import JsonDict

MOST_ROWS = 256
"""Of an actor: what begins while as many go on is counted and not shown."""
IDLE = 0
"""The row that says when an actor did nothing."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that one actor did. Spans of one row never overlap."""

    name: str
    row: int
    start: float
    """Seconds since 1970, by the clock of the actor's machine."""
    end: float
    what: JsonDict


class Spans:
    """What an actor does. Belongs to one thread."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._done: list[Span] = []
        self._rows: set[int] = set()
        """Those in which something goes on."""
        self._running = 0
        self._left_out = 0
        self._began = time() - monotonic()  # a clock that is set meanwhile must not tear spans apart
        self._idle_since = self._now()

    def _now(self) -> float:
        return self._began + monotonic()

    def of(self, name: str, **what: Any) -> AbstractContextManager[JsonDict]:
        """A span as long as this lasts. `what` is shown with it, and whatever is put into the dict that is given."""
        return self._kept(name, what) if self._on else nullcontext(what)

    @contextmanager
    def _kept(self, name: str, what: JsonDict) -> Iterator[JsonDict]:
        start = self._now()
        self._end_idle(start)
        row = next((row for row in range(1, MOST_ROWS + 1) if row not in self._rows), None)
        if row is not None:
            self._rows.add(row)
        self._running += 1
        try:
            yield what
        finally:
            self._running -= 1
            self._idle_since = self._now()
            if row is None:
                self._left_out += 1
            else:
                self._rows.discard(row)
                self._done.append(Span(name, row, start, self._idle_since, what))

    def _end_idle(self, now: float) -> None:
        if not self._running and now > self._idle_since:
            self._done.append(Span("idle", IDLE, self._idle_since, now, {}))
            self._idle_since = now

    def take(self) -> list[Span]:
        """Those that have ended since the last call."""
        if not self._on:
            return []
        now = self._now()
        self._end_idle(now)
        if self._left_out:
            self._done.append(Span(f"{self._left_out} more, not shown", IDLE, now, now, {}))
        done, self._done, self._left_out = self._done, [], 0
        return done


class TraceFile:
    """One file of a run's trace. Every write leaves an array that lacks no more than its last bracket."""

    def __init__(self, run_dir: Path) -> None:
        """Takes the first name that is free."""
        paths = (run_dir / (f"trace.{number}.json" if number > 1 else "trace.json") for number in count(1))
        self._file = next(path for path in paths if not path.exists()).open("x", encoding="utf-8")
        self._file.write('[{"name": "capo_ray", "ph": "M", "pid": 0, "args": {}}')
        self._file.flush()
        self._lanes: dict[str, int] = {}
        self._rows: set[tuple[int, int]] = set()

    def write(self, spans: Mapping[str, Sequence[Span]]) -> None:
        """`spans`: by actor. Each actor is a lane, each of its rows has a line of its own there."""
        events = [event for actor, its in spans.items() for event in self._events(actor, its)]
        self._file.write("".join(f",\n{json.dumps(event)}" for event in events))
        self._file.flush()

    def _events(self, actor: str, spans: Sequence[Span]) -> Iterator[JsonDict]:
        if actor not in self._lanes:
            self._lanes[actor] = len(self._lanes) + 1
            yield _named("process_name", self._lanes[actor], IDLE, actor)
        lane = self._lanes[actor]
        for span in spans:
            if (lane, span.row) not in self._rows:
                self._rows.add((lane, span.row))
                yield _named("thread_name", lane, span.row, f"row {span.row}" if span.row else "idle")
            yield {
                "name": span.name,
                "ph": "X",
                "ts": round(span.start * 1e6),
                "dur": round((span.end - span.start) * 1e6),
                "pid": lane,
                "tid": span.row,
                "args": span.what,
            }

    def close(self) -> None:
        self._file.write("\n]\n")
        self._file.close()


def _named(what: str, lane: int, row: int, name: str) -> JsonDict:
    return {"name": what, "ph": "M", "pid": lane, "tid": row, "args": {"name": name}}
