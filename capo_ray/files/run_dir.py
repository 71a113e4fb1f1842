"""The directory of a run: made for a new one, found for one that goes on, and written by one process at a time.

    RUN_DIR/config.yaml  metrics.jsonl  samples/  critiques/  responses/  tensorboard/  wandb/  checkpoints/  policy/

Leaves out its checkpoints (checkpoint) and what is tracked (records.tracking).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO


class RunDirError(ValueError):
    """The run directory cannot be used as asked; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run directory that is this process's own until `release`, or its end, however that comes."""

    run_dir: Path
    made: tuple[Path, ...]
    """The folders made for it, innermost first."""
    _lock: IO[str]

    def release(self) -> None:
        self._lock.close()

    def abandon(self) -> None:
        """Remove what a run left that never began: one without a config.yaml. Folders that were there stay, and so do
        those made in which something else stands by now. A run that began stays as it is."""
        if not (self.run_dir / "config.yaml").is_file():
            for left in self.run_dir.iterdir():  # it was empty, or it would have been refused
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            for folder in self.made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        self.release()


def claim(run_dir: Path, *, resume: bool) -> Claim:
    """Make `run_dir` for a new run, or find the run to resume there. Raises RunDirError, also while a living process
    has it."""
    check_claim(run_dir, resume=resume)
    made = tuple(folder for folder in (run_dir, *run_dir.parents) if not folder.exists())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = hold(run_dir)
    except OSError as error:
        raise RunDirError(f"the run directory {run_dir} cannot be written: {error.strerror}; pass another") from error
    return Claim(run_dir=run_dir, made=made, _lock=lock)


def check_claim(run_dir: Path, *, resume: bool) -> None:
    """Raises RunDirError where a run cannot begin in `run_dir`, or be resumed."""
    try:
        is_there = run_dir.exists()
        if is_there and not run_dir.is_dir():
            raise RunDirError(f"the run directory {run_dir} is a file; pass another run_dir")
        begun = (run_dir / "config.yaml").is_file()
        empty = not is_there or not any(path.name != _LOCK for path in run_dir.iterdir())
        check_place(run_dir)
    except OSError as error:
        raise RunDirError(f"the run directory {run_dir} cannot be read: {error.strerror}; pass another") from error
    if resume and not begun:
        raise RunDirError(
            f"{run_dir} holds no run to resume (no config.yaml); leave resume=true out to start one there"
        )
    if resume:
        check_count(run_dir)
    if not resume and not empty:
        raise RunDirError(
            f"the run directory {run_dir} exists and is not empty: pass resume=true to continue that run, "
            "or another run_dir (or none) to start a new one"
        )


def check_count(run_dir: Path) -> None:
    """Raises RunDirError where steps are counted from 0, as they once were: its files name other steps than those of
    today, and some would be taken for others."""
    if counts_from_zero(run_dir):
        raise RunDirError(
            f"{run_dir} was written by a version that counted training steps from 0, and they count from 1 now: go on "
            "with it by that version, or start another run with another run_dir"
        )


def counts_from_zero(run_dir: Path) -> bool:
    """By the first line of metrics.jsonl that is not of an evaluation."""
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return next((line for line in lines if '"evaluation/' not in line), "").startswith('{"step": 0,')


def check_place(run_dir: Path) -> None:
    """Raises RunDirError where what is there already takes no folder or file more."""
    there = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
    if not there.is_dir():
        raise RunDirError(f"the run directory {run_dir} cannot be written: {there} is a file; pass another run_dir")
    read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    if read_only or not os.access(there, os.W_OK | os.X_OK):
        why = "is on a disk that is read-only" if read_only else "may not be written"
        raise RunDirError(f"the run directory {run_dir} cannot be written: {there} {why}; pass another run_dir")


_LOCK = ".lock"
"""Held by the system for the process that has it open, so that no end of a process leaves it held; what stands in it
says whose it was last."""


def hold(run_dir: Path) -> IO[str]:
    """Keep other processes out of `run_dir` until what is returned is closed, or this process ends. Raises RunDirError
    while another keeps it."""
    path = run_dir / _LOCK
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            raise RunDirError(f"{run_dir} is the directory of a run that goes on: {_holder(file.read())}") from None
    file.truncate()
    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, file)
    file.flush()
    return file


def _holder(text: str) -> str:
    try:
        said = json.loads(text)
        who = f"process {said['process']} on {said['host']}, since {said['since']}"
    except (ValueError, TypeError, KeyError):
        who = "another process has it"
    return f"{who}. End that run first, or pass another run_dir"
