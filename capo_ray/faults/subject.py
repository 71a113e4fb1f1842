"""A run that faults are tried on: a program of its own, started as a user does, whose lines are read as they come.

Leaves out what is done to it (strike).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

from capo_ray.faults.orphans import Orphans
from capo_ray.records.tracking import is_evaluation
from capo_ray.types import JsonDict

STEP = "step "
"""How the line of a step begins."""


class Ended(RuntimeError):
    """It ended, and was not to."""


class Subject:
    """A run. Its lines, each with the time at which it came, are in `lines`."""

    def __init__(self, command: Sequence[str], run_dir: Path) -> None:
        self.run_dir = run_dir
        self.lines: list[tuple[float, str]] = []
        self.orphans = Orphans()
        self.home = Path(tempfile.mkdtemp(prefix="cf-"))  # short: paths of sockets have a limit of 107 characters
        self._news = threading.Condition()
        self._open = True
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for whoever tries faults, and passed on as an end
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append((monotonic(), line.rstrip("\n")))
                self._news.notify_all()
        with self._news:
            self._open = False
            self._news.notify_all()

    def until(self, pattern: str, *, since: int, within_s: float, count: int = 1) -> float | None:
        """When the `count`-th line from number `since` on that matches came; None where none did. Raises Ended."""
        deadline = monotonic() + within_s
        with self._news:
            while True:
                found = [at for at, line in self.lines[since:] if re.search(pattern, line)]
                if len(found) >= count:
                    return found[count - 1]
                if not self._open:
                    raise Ended(f"the run ended with exit code {self.process.wait()}: {self.last_words()}")
                if (left := deadline - monotonic()) <= 0:
                    return None
                self._news.wait(left)

    def ends(self, *, within_s: float) -> bool:
        """Whether it does. What its processes still write is read to the end."""
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        self._reading.join(10)
        return True

    def words(self, since: int) -> list[str]:
        """What it said since line number `since`, steps aside."""
        return [line for _, line in self.lines[since:] if line.strip() and not line.startswith(STEP)]

    def last_words(self) -> str:
        return " | ".join(self.words(0)[-4:])

    def stop(self, *, within_s: float = 120) -> bool:
        """Ask for a checkpoint and an end, as Ctrl-C does; whether it ended so."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGINT)
        asked = self.ends(within_s=within_s)
        self.kill()
        return asked and self.process.returncode == 130

    def kill(self) -> None:
        """Whatever is left of it, and its temporary files."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
        self.orphans.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def launch(run_dir: Path, overrides: Sequence[str], *, resume: bool = False) -> Subject:
    """As a user starts it."""
    arguments = [*overrides, f"run_dir={run_dir}", *(["resume=true"] if resume else [])]
    return Subject([sys.executable, "-m", "capo_ray.launch", *arguments], run_dir)


def steps_of(run_dir: Path) -> list[JsonDict]:
    """The lines of metrics.jsonl that are of steps; a last one that is being written is left out."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if not is_evaluation(line)]


def newest(run_dir: Path) -> Mapping[str, float]:
    """The numbers of the last step; none where none was done."""
    return next(reversed(steps_of(run_dir)), {})
