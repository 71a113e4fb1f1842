"""How the programs of this package end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import asyncio, sys, time
from capo_ray.program import run_program

async def in_a_loop():
    print("begun", flush=True)
    await asyncio.sleep(60)

def outside():
    print("begun", flush=True)
    time.sleep(60)

def work(arguments):
    {waits}

sys.exit(run_program(work, ["a=1"], "usage", settings=str, afterwards="It goes on from here."))
"""


@pytest.mark.parametrize("waits", ["outside()", "asyncio.run(in_a_loop())"])
@pytest.mark.parametrize(
    ("sent", "background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_an_interruption_is_told_in_one_line(waits: str, sent: signal.Signals, background: bool) -> None:
    """What a shell starts in the background does not hear Ctrl-C."""
    ctrl_c = signal.SIG_IGN if background else signal.default_int_handler
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(waits=waits)],
            cwd=ROOT, env={**os.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert program.stdout is not None and program.stdout.readline() == "begun\n"
    program.send_signal(sent)
    _, told = program.communicate(timeout=30)
    assert (program.returncode, told) == (130, "\ninterrupted. It goes on from here.\n")


TOLD = """
import sys, time
from capo_ray.program import run_program
from capo_ray.leaving import on_interrupt

def work(arguments):
    asked = []
    with on_interrupt(lambda: asked.append(1)):
        print("begun", flush=True)
        while not asked:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(60)

sys.exit(run_program(work, ["a=1"], "usage", settings=str))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interruption_may_ask_and_the_second_ends(sent: signal.Signals) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", TOLD], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    for line in ("begun", "asked"):
        assert program.stdout.readline() == f"{line}\n"
        program.send_signal(sent)
    assert "interrupted." in program.communicate(timeout=30)[1] and program.returncode == 130
