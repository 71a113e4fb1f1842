"""Runs as a user starts them, in processes of their own: read, signalled, waited for; nothing of one may be left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from capo_ray.faults.orphans import Orphans, names_of
from capo_ray.faults.processes import find

QUICK = (
    "+experiment=tiny_cpu",
    "prompts_per_step=4",
    "trainer.responses_per_update=8",
    "responses_per_prompt=4",
    "data.evaluation_prompts=16",
    "data.evaluation_responses=2",
    "tracking.wandb=off",
    "checkpoint_every=3",
    "keep_checkpoints=3",
)
UNEVALUATED = (*QUICK[:4], "tracking.wandb=off", "data.evaluation_prompts=0", "data.evaluation=null")
ROOT = Path(__file__).resolve().parents[1]
UNLIKE = (
    *("time", "seconds/", "speed/", "actor/", "idle/", "run/", "critic/seconds_per_response", "trainer/seconds"),
    "turns/",
    "cache/",  # of two critics the idler one is asked
    *("critic/engines_down", "critic/retries"),
)
"""Begin the names of numbers that depend on timing, or count what was done to a run."""


@dataclass(frozen=True)
class Ran:
    code: int
    output: str
    run_dir: Path

    @property
    def steps(self) -> list[dict[str, Any]]:
        return steps_in(self.run_dir)

    @property
    def samples(self) -> list[dict[str, Any]]:
        files = sorted((self.run_dir / "samples").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def steps_in(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "staleness" in line]


def numbers(lines: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Of each step, without those that depend on timing."""
    return {
        line["step"]: {name: value for name, value in line.items() if not name.startswith(UNLIKE)} for line in lines
    }


def alike(line: dict[str, Any], *, rel: float = 1e-5) -> Any:
    """What equals the same step of another run: counts to the last one, while last digits differ with who else is in a
    batch just then, since some CPUs multiply three rows or fewer by other code than more."""
    return pytest.approx(line, rel=rel, abs=1e-4, nan_ok=True)


def folder_of(mark: str) -> Path:
    """Where a run puts its temporary files: short, since paths of sockets have a limit of 107 characters."""
    folder = Path("/tmp") / mark[:8]
    folder.mkdir(exist_ok=True)
    return folder


class Running:
    """A run on its way, as a user starts it."""

    def __init__(self, run_dir: Path, *overrides: str) -> None:
        self.run_dir = run_dir
        self.mark = uuid.uuid4().hex
        self.orphans = Orphans()
        self.joins = any(override.startswith("cluster.address=") for override in overrides)
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "capo_ray.launch", *overrides, f"run_dir={run_dir}"],
            cwd=run_dir.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder_of(self.mark))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that an interrupt reaches it and not this process
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *failure: object) -> None:
        """A test that failed on the way leaves no run behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.communicate()
        shutil.rmtree(folder_of(self.mark), ignore_errors=True)

    def read_until(self, first: str) -> None:
        """To the next line that begins with `first`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith(first):
                return
        raise AssertionError(f"no line begins with {first!r}:\n{self.output}")

    def read_past(self, said: str) -> None:
        """To the next line that has this in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if said in line:
                return
        raise AssertionError(f"no line has {said!r}:\n{self.output}")

    def read_past_all(self, said: list[str]) -> None:
        """Until each of these has been in a line from here on, in whichever order."""
        at = len(self.output)
        while missing := [one for one in said if one not in self.output[at:]]:
            self.read_past(missing[0])

    def read_steps(self, count: int) -> None:
        """Over so many lines of steps."""
        for _ in range(count):
            self.read_until("step ")

    def find(self, *names: str) -> list[psutil.Process]:
        """See faults.processes."""
        return find(self.process.pid, *names)

    def reachable(self) -> set[str]:
        """Ports that other machines can reach, by the process that listens."""
        found = set()
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            with suppress(psutil.Error):
                for one in process.net_connections("inet"):
                    here = one.laddr.ip.removeprefix("::ffff:") if one.status == psutil.CONN_LISTEN else "127.0.0.1"
                    if not here.startswith("127.") and here != "::1":
                        found.add(f"{process.name()} at {one.laddr.ip}")
        return found

    def temporary_files(self) -> dict[str, bytes]:
        """What the files of its temporary folder hold by now, Ray's session among them."""
        found = {}
        for path in folder_of(self.mark).rglob("*"):
            with suppress(OSError):  # some are gone by now, and some are sockets
                if path.is_file() and not path.is_symlink():
                    found[str(path)] = path.read_bytes()
        return found

    def freeze(self, *names: str) -> None:
        """Stop the innermost of what `find` finds, as a hang would."""
        self.find(*names)[-1].suspend()

    def kill(self, *names: str) -> None:
        """Kill the innermost of what `find` finds, and wait until the outermost has ended with it."""
        found = self.find(*names)
        found[-1].kill()
        found[0].wait(30)

    def wait_for(self, name: str) -> None:
        """Until there is such a process."""
        while not self.find(name):
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.1)

    def interrupt(self, sent: signal.Signals) -> Ran:
        """Signal every process of it; it must end in seconds and name its checkpoint."""
        os.killpg(self.process.pid, sent)
        begun = time.monotonic()
        ran = self.end()
        assert ran.code == 130, ran.output
        assert time.monotonic() - begun < 60
        assert "The last checkpoint is" in ran.output and "resume=true" in ran.output
        return ran

    def end(self) -> Ran:
        """Wait for its end; it must leave nothing behind."""
        try:
            self.output += self.process.communicate(timeout=400)[0]
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the run did not end:\n{self.output}{self.process.communicate()[0]}") from None
        session = self.process.pid if self.joins else None
        assert left_behind(self.orphans, folder_of(self.mark), session) == []
        return Ran(self.process.returncode, self.output, self.run_dir)


def start(program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Another program, until it ends."""
    return subprocess.run(
        [sys.executable, "-m", f"capo_ray.{program}", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )


def run(run_dir: Path, *overrides: str) -> Ran:
    return Running(run_dir, *overrides).end()


def left_behind(orphans: Orphans, folder: Path, session: int | None = None) -> list[str]:
    """Processes a few seconds after their program has ended, or else what is left of its Ray session. `session`: those
    of that session alone, where machines that the test itself starts and ends are there too."""
    left = orphans.left()
    if found := names_of(left if session is None else [one for one in left if _session_of(one) == session]):
        return found
    there = sorted(ours(str(folder)))
    shutil.rmtree(folder)
    return there


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def ours(folder: str) -> set[str]:
    """Shared memory, Ray's folders and vLLM's sockets."""
    return {path.name for path in Path(folder).iterdir() if path.name.startswith("capo_ray-") or path.is_socket()}
