"""What a program leaves behind when it ends, whatever its processes call themselves by then.

A process whose parent has ended goes to the nearest one above that has asked for such (PR_SET_CHILD_SUBREAPER, Linux),
so all that is left of a program is below whoever started it. Neither names nor environments are asked, since Ray's
workers and wandb write over both. Leaves out whose processes they were (the caller starts one program at a time).
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from time import monotonic

import psutil

from capo_ray.leaving import adopt_orphans

log = logging.getLogger(__name__)


class Orphans:
    """Of what this process starts from now on. Not for two programs at a time."""

    def __init__(self) -> None:
        """Raises OSError where the system has no such thing."""
        if not adopt_orphans():
            raise OSError("this process cannot take over what its children leave behind")
        self._before = set(psutil.Process().children(recursive=True))

    def left(self, *, within_s: float = 10.0) -> list[psutil.Process]:
        """What does not end within so many seconds."""
        deadline = monotonic() + within_s
        while (found := self._living()) and monotonic() < deadline:
            time.sleep(0.2)
        return found

    def kill(self, *, within_s: float = 10.0) -> None:
        """All that is left, and what that has started meanwhile. What the kernel holds stays, with a word."""
        deadline = monotonic() + within_s
        while found := self._living():
            if monotonic() > deadline:
                log.warning("these processes do not end: %s", ", ".join(names_of(found)))
                return
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=1.0)

    def _living(self) -> list[psutil.Process]:
        living = []
        for process in set(psutil.Process().children(recursive=True)) - self._before:
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
                elif process.ppid() == os.getpid():
                    with suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
        return living


def names_of(processes: list[psutil.Process]) -> list[str]:
    """What each calls itself, for a message."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline())[:100] or process.name())
    return found
