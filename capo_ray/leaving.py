"""How a process of this package is interrupted and how it ends: signals, and leaving without what libraries do at exit.

Leaves out exit codes and messages (program).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Job schedulers end programs by SIGTERM, which Python does not turn into an exception by itself."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background jobs ignore Ctrl-C
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_interrupt(call: Callable[[], object]) -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM, in here is a `call` and nothing else; the next one does what it did before."""
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        call()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_SET_CHILD_SUBREAPER = 36
"""Of prctl(2)."""
_LAST: list[Callable[[], object]] = []


def before_leaving(call: Callable[[], object]) -> None:
    """Have `call` done when this process ends, by `leave` too, which leaves out what libraries have to do then."""
    _LAST.append(call)
    atexit.register(call)


def leave(code: int) -> NoReturn:
    """End this process now, with all engines closed: vLLM's finalizers would print a traceback below the last line, and
    Ray's would wait for a head that is gone. What this process started and that still lives, frozen or not, ends too.
    """
    for call in _LAST:
        call()
    _end_children()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def adopt_orphans() -> bool:
    """Whether what is below this process, and has lost its own parent, comes to this process from now on. Elsewhere it
    goes to the system's first process, which in a container may reap nobody; what waits for it then waits in vain."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # of Linux alone
    return prctl is not None and prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def _end_children(within_s: float = 5.0) -> None:
    """Kill and reap them, and those that come from below them. What the kernel holds is left."""
    deadline = time.monotonic() + within_s
    with suppress(ChildProcessError):  # there is none left
        while time.monotonic() < deadline:
            for child in _children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


def _children() -> list[int]:
    """Process ids; none where the system has no /proc."""
    return [int(pid) for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()]
