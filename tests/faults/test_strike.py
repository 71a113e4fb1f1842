"""A fault that is done to a scripted run: what it said and when, what it did not say, what it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import psutil
import pytest

from capo_ray.faults.kinds import Kind
from capo_ray.faults.orphans import Orphans
from capo_ray.faults.plan import Fault
from capo_ray.faults.processes import all_of, find, own_memory
from capo_ray.faults.strike import NoTarget, calm, strike
from capo_ray.faults.subject import Ended, Subject

RUN = """
import json, os, subprocess, sys, time
run_dir, what = sys.argv[1:]
worker = subprocess.Popen(["sleep", "1000"])
lost = 0
for step in range(10000):
    time.sleep(0.05)
    state = open(f"/proc/{worker.pid}/stat").read().split()[2] if worker.poll() is None else ""
    if worker.poll() is not None or state == "T":
        if what == "gone": sys.exit(3)
        if what == "error": print("error: the worker is gone", flush=True); worker.kill(); sys.exit(1)
        if what == "leaves":
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen(["env", "-i", "sleep", "999"], start_new_session=True, **silent)
            print("error: the worker is gone", flush=True); sys.exit(1)
        worker.kill(); worker.wait(); lost += what != "uncounted"
        if what == "stands still": time.sleep(1000)
        if what != "silent": print("W the worker died", flush=True)
        if what == "traceback": print("Traceback (most recent call last):", flush=True)
        worker = subprocess.Popen(["sleep", "1000"])
    with open(f"{run_dir}/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "run/lost": lost}) + chr(10))
    if what == "of a step": lost = 0
    print(f"step {step}/10000", flush=True)
"""
KILLED = Kind(
    name="kill",
    act="kill",
    target=("sleep",),
    says="the worker died",
    metrics=("run/lost",),
    noticed_s=2,
    recovered_s=3,
)
ENDS = Kind(name="ends", act="kill", target=("sleep",), then="ends", says="^error: ", noticed_s=2)


@contextmanager
def scripted(run_dir: Path, what: str = "") -> Iterator[Subject]:
    subject = Subject([sys.executable, "-c", RUN, str(run_dir), what], run_dir)
    try:
        calm(subject)
        yield subject
    finally:
        subject.kill()
        assert subject.orphans.left(within_s=0) == []


def fault(kind: Kind) -> Fault:
    return Fault(number=0, kind=kind, which=0.5, delay=0.5)


def test_who_has_ended_and_is_not_reaped_is_nobody() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(ended.pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert ended.pid not in [chain[-1].pid for chain in all_of(os.getpid(), process.name())]
    ended.wait()


def test_who_was_frozen_and_given_up_is_nobody() -> None:
    with subprocess.Popen(["sleep", "1000"]) as frozen:
        os.kill(frozen.pid, signal.SIGSTOP)
        while psutil.Process(frozen.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        hit = [chain[-1].pid for chain in all_of(os.getpid(), "sleep")]
        frozen.kill()
    assert frozen.pid not in hit


@pytest.mark.parametrize(("act", "what"), [("kill", ""), ("freeze", ""), ("kill", "of a step")])
def test_what_keeps_its_promises(act: str, what: str, tmp_path: Path) -> None:
    """Whether it is counted since the run began or in its step alone."""
    kind = Kind(name=act, act=act, target=("sleep",), says="died", metrics=("run/lost",), noticed_s=5, recovered_s=9)  # type: ignore[arg-type]
    with scripted(tmp_path, what) as subject:
        for _ in range(2):
            tried = strike(subject, fault(kind))
            assert tried.failures == () and tried.said == ("W the worker died",)
            assert tried.noticed_s is not None and tried.recovered_s is not None
            assert 0 <= tried.noticed_s <= tried.recovered_s < 5


@pytest.mark.parametrize(
    ("what", "failure"),
    [
        ("silent", "nothing said it within 2 s"),
        ("uncounted", "none of run/lost grew"),
        ("traceback", "said Traceback (most recent call last):"),
    ],
)
def test_a_promise_that_is_broken_is_found(what: str, failure: str, tmp_path: Path) -> None:
    with scripted(tmp_path, what) as subject:
        assert failure in strike(subject, fault(KILLED)).failures


def test_a_run_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    with scripted(tmp_path, "gone") as subject, pytest.raises(Ended, match="exit code 3"):
        strike(subject, fault(KILLED))


def test_a_run_that_stands_still_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capo_ray.faults.strike.STARTS_S", 1.0)
    with scripted(tmp_path, "stands still") as subject, pytest.raises(Ended, match="no 2 steps in 1 s"):
        strike(subject, fault(KILLED))


@pytest.mark.parametrize(
    ("what", "failures"),
    [
        ("error", ()),
        ("leaves", ("1 processes are left: sleep 999",)),
        ("gone", ("it ended without a line that says why", "its exit code is 3")),
    ],
)
def test_a_run_that_is_to_end(
    what: str, failures: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Orphans, "left", partialmethod(Orphans.left, within_s=1.0))
    with scripted(tmp_path, what) as subject:
        tried = strike(subject, fault(ENDS))
        assert tried.failures == failures
        assert (tried.noticed_s is not None) == (what != "gone") and tried.recovered_s is None


def test_what_is_to_be_borne_and_is_not(tmp_path: Path) -> None:
    """This run ends a worker as soon as it stands still, as one that is slowed down does most of the time."""
    kind = Kind(name="slow", act="slow", target=("sleep",), then="is borne", lasts_s=1.5, recovered_s=2)
    with scripted(tmp_path) as subject:
        assert "said W the worker died" in strike(subject, fault(kind)).failures


def test_what_is_not_there_is_not_hit(tmp_path: Path) -> None:
    kind = Kind(name="kill", act="kill", target=("sleep", "nobody"), says="died")
    with scripted(tmp_path) as subject, pytest.raises(NoTarget, match="nobody below sleep"):
        strike(subject, fault(kind))


def test_memory_is_that_of_the_program_and_its_parts(tmp_path: Path) -> None:
    with scripted(tmp_path) as subject:
        ((part, pid),) = own_memory(subject.pid)
        assert (part, pid) == ("driver", subject.pid)
        assert isinstance(find(subject.pid, "sleep")[0], psutil.Process) and find(subject.pid, "nobody") == []
