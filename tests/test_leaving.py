"""How a program ends: with all that it started, reaped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from capo_ray.leaving import adopt_orphans

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import subprocess, sys
from capo_ray.leaving import adopt_orphans, leave
assert adopt_orphans()
below = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", below], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
if sys.argv[1:]:
    child.kill()
leave(3)
"""


def test_what_a_program_started_is_gone_and_reaped_when_it_ends() -> None:
    """Orphans among it too, though their next of kin, this process, reaps none: a zombie would be seen here."""
    assert adopt_orphans()
    for first in ([], ["child"]):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *first], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 3, done.stderr
        started = [int(pid) for pid in done.stdout.split()]
        assert len(started) == 2 and not [pid for pid in started if psutil.pid_exists(pid)]


def test_a_program_adopts_orphans_and_one_that_is_called_does_not() -> None:
    code = (
        "import ctypes, sys; from capo_ray.program import run_program;"
        "run_program(lambda given: 0, [] if sys.argv[1:] else None, 'usage', settings=str, bare=True);"
        "told = ctypes.c_int(); ctypes.CDLL(None).prctl(37, ctypes.byref(told)); print(told.value)"
    )
    for given, adopts in (([], "1\n"), (["called"], "0\n")):
        done = subprocess.run(
            [sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == adopts, done.stderr
