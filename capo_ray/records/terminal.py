"""What a run shows in the terminal: the newest numbers in place, or one plain line per step where nobody watches.

Leaves out what the numbers are (tally) and where else they go (tracking).
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from capo_ray.types import Metrics

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

log = logging.getLogger("capo_ray")

Show = Callable[[float], str]
ROLES = ("rollout", "critic", "trainer", "aggregator")
MOST_TREND = 24
"""Steps of a trend."""
LEAST_PACE = 3
"""Steps after which the remaining time is shown."""


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def short(value: float) -> str:
    """Three digits or so: 850, 1.2k, 14k."""
    if abs(value) < 999.5:
        return f"{value:.0f}"
    return f"{value / 1000:.1f}k" if abs(value) < 9950 else f"{value / 1000:.0f}k"


def signed(value: float) -> str:
    return f"{value:+.3f}"


def plain(value: float) -> str:
    return f"{value:.1f}"


def seconds(value: float) -> str:
    return f"{value:.1f} s"


SPEED = "tok/s"
LINE: tuple[tuple[str, tuple[tuple[str, str, Show], ...]], ...] = (
    ("reward", (("", "reward/mean_token_reward", signed),)),
    (
        "right",
        (
            ("answer", "outcome/accuracy", percent),
            ("steps", "truth/step_accuracy", percent),
            ("both", "truth/right_answer_and_process", percent),
        ),
    ),
    ("valid critiques", (("", "critic/valid_share", percent),)),
    (
        SPEED,
        (
            ("rollout", "speed/rollout_tokens_per_s", short),
            ("critic", "speed/critic_tokens_per_s", short),
            ("trainer", "speed/trainer_tokens_per_s", short),
        ),
    ),
    ("stale", (("", "staleness", short),)),
    ("", (("", "seconds/step", seconds),)),
)
"""The progress line: topic, and per topic a label, a metric and how it is written. What is not there is left out."""

TABLE: tuple[tuple[str, str, Show], ...] = (
    ("right answer", "outcome/accuracy", percent),
    ("right reasoning steps", "truth/step_accuracy", percent),
    ("right answer and right process", "truth/right_answer_and_process", percent),
    ("right answer, wrong process", "truth/right_answer_wrong_process", percent),
    ("wrong answer, right process", "truth/wrong_answer_right_process", percent),
    ("wrong answer, wrong process", "truth/wrong_answer_wrong_process", percent),
    ("unverifiable answers", "outcome/unverifiable_share", percent),
    ("cut off", "response/cut_off_share", percent),
    ("tokens per response", "response/mean_tokens", plain),
    ("reasoning steps per response", "response/mean_steps", plain),
)


class Display(Protocol):
    def step(self, step: int, metrics: Metrics) -> None:
        """What step `step` (from 1) did."""
        ...

    def evaluation(self, step: int, metrics: Metrics) -> None: ...

    def rewind(self, step: int) -> None:
        """`step` steps are done."""
        ...

    def close(self) -> None: ...


def display(total_steps: int) -> Display:
    """In place where the output is a terminal that can, else lines."""
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return InPlace(total_steps)
    return Lines(total_steps)


class Lines:
    """A line per step and evaluation; at `-v` one more per actor."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._seconds: deque[float] = deque(maxlen=MOST_TREND)

    def step(self, step: int, metrics: Metrics) -> None:
        self._seconds.append(metrics.get("seconds/step", math.nan))
        head = f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}"
        self._say(head, metrics, left(self._seconds, self._total_steps - step))
        if log.isEnabledFor(logging.INFO):
            for row in rows_by_actor(metrics):
                print("  " + "  ".join(row), flush=True)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        self._say(f"evaluation after {step} steps", metrics)

    def rewind(self, step: int) -> None:
        """Nothing: what was printed stays."""

    def close(self) -> None:
        """Nothing is open."""

    def _say(self, head: str, metrics: Metrics, tail: str = "") -> None:
        print(" | ".join([head, *progress(metrics), *([tail] if tail else [])]), flush=True)


class InPlace:
    """A bar over the steps, the newest numbers with their trends, and how fast each role is (at `-v` each actor).

    Evaluations, warnings and whatever else is printed meanwhile stand above it.
    """

    def __init__(self, total_steps: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self._console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
        self._progress = Progress(*columns, TextColumn("left"), console=self._console)
        self._bar = self._progress.add_task("starting", total=total_steps)
        self._trends: dict[str, deque[float]] = {}
        self._metrics: Metrics = {}
        shared = sys.stderr.isatty()  # one that goes to a file is to stay there
        self._live = Live(
            get_renderable=self._show, console=self._console, refresh_per_second=2, redirect_stderr=shared
        )
        written, self._moved = sys.stderr, list[logging.StreamHandler[Any]]()
        self._live.start()
        for handler in logging.getLogger().handlers:
            if shared and isinstance(handler, logging.StreamHandler) and handler.stream is written:
                handler.setStream(sys.stderr)
                self._moved.append(handler)

    def step(self, step: int, metrics: Metrics) -> None:
        self._metrics = metrics
        for _, entries in LINE:
            for _, name, _ in entries:
                if math.isfinite(metrics.get(name, math.nan)):
                    self._trends.setdefault(name, deque(maxlen=MOST_TREND)).append(metrics[name])
        self._progress.update(self._bar, completed=step, description="training")

    def evaluation(self, step: int, metrics: Metrics) -> None:
        line = " | ".join([f"evaluation after {step} steps", *progress(metrics)])
        self._console.print(line, highlight=False, markup=False)

    def rewind(self, step: int) -> None:
        self._trends.clear()
        self._progress.reset(self._bar, completed=step, description="starting")

    def close(self) -> None:
        self._live.stop()
        for handler in self._moved:
            handler.setStream(sys.stderr)
        self._moved.clear()

    def _show(self) -> RenderableType:
        from rich.columns import Columns
        from rich.console import Group

        if not self._metrics:
            return self._progress
        parts = [self._numbers(), self._speeds()]
        return Group(self._progress, Columns(parts, padding=(0, 4)))

    def _numbers(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right", style="bold")
        table.add_column(style="cyan")
        for topic, entries in LINE:
            for label, name, show in entries:
                if name in self._metrics and topic != SPEED:
                    label = f"{topic} {label}".strip() or "step"
                    table.add_row(label, show(self._metrics[name]), trend(self._trends.get(name, (0.0,))))
        return table

    def _speeds(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        for _ in range(2):
            table.add_column(justify="right", style="bold")
        table.add_row("", "[dim]tok/s", "[dim]busy")
        for row in rows_by_actor(self._metrics) if log.isEnabledFor(logging.INFO) else rows_by_role(self._metrics):
            table.add_row(*row)
        return table


def left(taken: Collection[float], steps: int) -> str:
    """Time for `steps` more at the pace of those `taken`, in seconds; empty before the third, and after the last."""
    known = [value for value in taken if math.isfinite(value)]
    if len(known) < LEAST_PACE or steps <= 0:
        return ""
    minutes = round(steps * median(known) / 60)
    if minutes < 1:
        return "less than a minute left"
    return f"{minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f"{minutes} min left"


def trend(values: Sequence[float]) -> str:
    """A curve of blocks, from the smallest value to the largest."""
    low, high = min(values), max(values)
    if low == high:
        return ""
    return "".join("▁▂▃▄▅▆▇█"[int(7.999 * (value - low) / (high - low))] for value in values)


def rows_by_role(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Role, tokens per second, busy share; what is not known is left blank."""
    made = []
    for role in ROLES:
        speed, idle = metrics.get(f"speed/{role}_tokens_per_s"), metrics.get(f"idle/{role}_share")
        if speed is not None or idle is not None:
            made.append((role, "" if speed is None else short(speed), "" if idle is None else percent(1 - idle)))
    return made


def rows_by_actor(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The same of every actor."""
    ending = "/busy_share"
    made = []
    for name, busy in metrics.items():
        if name.startswith("actor/") and name.endswith(ending):
            speed = metrics.get(name.removesuffix(ending) + "/tokens_per_s")
            actor = name.removeprefix("actor/").removesuffix(ending)
            made.append((actor, "" if speed is None else short(speed), percent(busy)))
    return made


def progress(metrics: Metrics) -> list[str]:
    """The parts of a progress line, such as "right answer 52.0%, steps 81.3%"."""
    made = []
    for topic, entries in LINE:
        numbers = [f"{label} {show(metrics[name])}".strip() for label, name, show in entries if name in metrics]
        if numbers:
            made.append(f"{topic} {', '.join(numbers)}".strip())
    return made


def table_rows(before: Metrics, after: Metrics) -> list[tuple[str, str, str, str]]:
    """Label, before, after and the change, of what both evaluations have; changes of shares in percentage points. Where
    evaluations have the 95 % interval of a share, half its width stands beside it."""
    rows = []
    for label, name, show in TABLE:
        if name in before and name in after:
            change = after[name] - before[name]
            changed = f"{100 * change:+.1f} points" if show is percent else f"{change:+.1f}"
            first, last = (f"{show(metrics[name])}{_interval(metrics, name)}" for metrics in (before, after))
            known = " (± 95 % interval)" if "±" in first + last else ""
            rows.append((label + known, first, last, changed))
    return rows


def _interval(metrics: Metrics, name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f" ± {50 * (high - low):.1f}"
