"""How a process of this package is interrupted and how it ends: signals, and leaving without what libraries do at exit.

Leaves out exit codes and messages (program).
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
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
    for child in _children():
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _children() -> list[int]:
    """Process ids; none where the system has no /proc."""
    return [int(pid) for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()]
