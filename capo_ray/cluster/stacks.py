"""What a process that hangs was doing: the stacks of it and of those below it, read from outside, frozen or not.

py-spy reads them, which Ray's dashboard brings along and uses for the same. Leaves out when they are wanted (pulse).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

WITHIN_S = 10.0
"""For one process; a large one takes a second."""


def family(pid: int) -> list[psutil.Process]:
    """Those below `pid`, then itself; empty where it is gone."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def stacks(pid: int) -> str:
    """Of every thread of `pid` and of what it started; where they cannot be read, why."""
    return "\n".join(_of_one(process.pid) for process in reversed(family(pid)))


def _of_one(pid: int) -> str:
    # --nonblocking reads its memory and asks nothing of it: one that is stopped could not answer.
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Process {pid}: its stacks cannot be read ({type(error).__name__}: {error})\n"
    if done.returncode:
        return f"Process {pid}: its stacks cannot be read ({' '.join(done.stderr.split())})\n"
    return done.stdout
