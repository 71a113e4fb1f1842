"""Parts that end in every way there is; the child process imports them by name."""

import os
import signal
import subprocess
import sys
import time

from capo_ray.gpu_check.notes import Cannot, Notes


def fine(notes: Notes, rate: float = 1.0) -> None:
    notes.say("measuring")
    (notes.scratch / "large").write_text("weights")
    notes.put(rate=rate)
    notes.add("steps", {"tokens": 1})
    notes.add("steps", {"tokens": 2})


def fails(notes: Notes) -> None:
    notes.put(rate=2.0)
    notes.say("second half")
    raise ValueError("\nCUDA out of memory\nmore lines")


def cannot(notes: Notes) -> None:
    raise Cannot("there is one card")


def hangs(notes: Notes) -> None:
    """Deaf to SIGTERM, and with a process that has left its group and session."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    notes.put(child=child.pid, rate=3.0)
    notes.say("waiting for NCCL")
    time.sleep(600)


def is_killed(notes: Notes) -> None:
    notes.say("allocating")
    os.kill(os.getpid(), signal.SIGKILL)


def ends(notes: Notes) -> None:
    os._exit(7)


def leaves_one_behind(notes: Notes) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    notes.put(child=child.pid)
