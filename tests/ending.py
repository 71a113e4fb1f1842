"""Whether killed processes have ended: a signal is sent at once, and the end comes when the kernel is at it."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def living(pids: Iterable[int | str], *, within_s: float = 10.0) -> list[int]:
    """Those of `pids` that have not ended by then; a zombie has."""
    left, until = [int(pid) for pid in pids], time.monotonic() + within_s
    while (left := [pid for pid in left if _lives(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
