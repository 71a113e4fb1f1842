"""What is kept of faults that were tried, so that figures of many runs add up and the next one goes on from there.

    OUT/faults.jsonl   a line per fault
    OUT/runs.jsonl     a line per run that has ended: what `check` found of it, and a few numbers of each step
    OUT/memory.jsonl   what memory each process had for itself, and when
    OUT/NUMBER/        the run's metrics.jsonl, config.yaml and what it said; where a promise was broken, files/

Leaves out what is made of it (table).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from time import time
from typing import Any

from capo_ray.faults.check import Checked
from capo_ray.faults.plan import Fault
from capo_ray.faults.processes import own_memory
from capo_ray.faults.strike import Tried
from capo_ray.faults.subject import Subject, newest, steps_of
from capo_ray.files.lines import appending, cut_to_whole_lines
from capo_ray.types import JsonDict

FAULTS, RUNS, MEMORY = "faults.jsonl", "runs.jsonl", "memory.jsonl"
MOST_SAID, MOST_LETTERS = 12, 300
CURVE = (
    *("truth/right_answer_and_process", "reward/mean_token_reward", "outcome/accuracy"),
    *("response/mean_tokens", "trainer/loss"),
)
KEPT = ("metrics.jsonl", "config.yaml", "error.log")
LOOK_S = 10.0


class Record:
    """Of one folder. Several programs may add to it at a time, each with a run and a `seed` of its own."""

    def __init__(self, out: Path, *, seed: int) -> None:
        """`seed` is that of the sequence of faults."""
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.seed = out, seed
        for name in (FAULTS, RUNS, MEMORY):
            cut_to_whole_lines(out / name)
        known = [line["run"] for name in (FAULTS, RUNS) for line in read(out / name)]
        left = [int(folder.name) for folder in out.iterdir() if folder.name.isdigit()]
        self.run = claimed(out, at_least=1 + max([*known, *left], default=-1))
        """The number of the next run; one of which a folder was left, and no line, had one too."""

    @property
    def folder(self) -> Path:
        return self.out / f"{self.run:04d}"

    def turn(self, *, disturbed: bool) -> int:
        """How many runs there are to which faults were done, or of the others."""
        hit = {line["run"] for line in read(self.out / FAULTS)}
        runs = hit | {line["run"] for line in read(self.out / RUNS)}
        return len(hit if disturbed else runs - hit)

    def tried(self, chosen: Sequence[str] = ()) -> int:
        """How many faults of the sequence, which is another for each choice of kinds; none: all of them."""
        mine = (self.seed, list(chosen))
        lines = [line for line in read(self.out / FAULTS) if (line.get("seed", 0), line.get("chosen", [])) == mine]
        return 1 + max((line["number"] for line in lines), default=-1)

    def fault(self, fault: Fault, tried: Tried, chosen: Sequence[str] = ()) -> None:
        """Without this machine's own folders, since the lines are for others too."""
        said = [self._at_home(line)[:MOST_LETTERS] for line in tried.said[:MOST_SAID]]
        failures = [self._at_home(failure) for failure in tried.failures]
        line = {"run": self.run, "seed": self.seed, "number": fault.number, "kind": fault.kind.name, "time": time()}
        of = {"chosen": list(chosen)} if chosen else {}
        self._append(FAULTS, line | of | asdict(tried) | {"said": said, "failures": failures})

    def _at_home(self, text: str) -> str:
        folders = {self.folder / "run": "RUN_DIR", sys.prefix: "PYTHON", tempfile.gettempdir(): "TMPDIR"}
        for folder, name in folders.items():
            text = text.replace(str(folder), name)
        return text

    def ended(self, checked: Checked, run_dir: Path, *, seed: int, failures: list[str], seconds: float) -> None:
        line = {"run": self.run, "seed": seed, "seconds": seconds, "failures": failures, "time": time()}
        self._append(RUNS, line | asdict(checked) | {"curve": curve_of(steps_of(run_dir))})

    def keep(self, run_dir: Path, lines: list[str], *, whole: bool) -> None:
        """Of a run's files, and of what it said."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "output.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if whole:
            ignored = shutil.ignore_patterns("checkpoints", ".filler", "policy")
            shutil.copytree(run_dir, self.folder / "files", symlinks=True, dirs_exist_ok=True, ignore=ignored)
        for name in KEPT:
            if (run_dir / name).is_file():
                shutil.copy(run_dir / name, self.folder / name)

    @contextmanager
    def watching_memory(self, subject: Callable[[], Subject | None]) -> Iterator[None]:
        """Of whichever run `subject` returns, as long as this lasts."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(LOOK_S):
                if (now := subject()) is not None and (last := newest(now.run_dir)):
                    for (part, pid), mib in own_memory(now.pid).items():
                        at = {"run": self.run, "step": last["step"], "part": part, "pid": pid, "mib": round(mib, 2)}
                        self._append(MEMORY, at)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _append(self, name: str, line: JsonDict) -> None:
        with appending(self.out / name) as append:
            append(json.dumps(line) + "\n")


def claimed(out: Path, *, at_least: int) -> int:
    """The first number from `at_least` on whose folder nobody else makes."""
    for number in count(at_least):
        with suppress(FileExistsError):
            (out / f"{number:04d}").mkdir()
            return number
    raise AssertionError


def curve_of(lines: Sequence[JsonDict]) -> dict[str, list[float | None]]:
    """By step, what runs of one seed are compared by: the values of CURVE."""
    return {str(line["step"]): [line.get(name) for name in CURVE] for line in lines}


def read(path: Path) -> list[Any]:
    """The lines of one of its files; none where there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
