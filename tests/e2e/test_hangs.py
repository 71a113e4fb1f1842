"""Processes that hang and a Ray session that goes away, in a run as a user starts it: named, ended, gone on from.

docs/reliability.md has what this prints.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running import QUICK, Running, steps_in

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(1500)]

SETTINGS = (
    *QUICK[:3],
    *("tracking.wandb=off", "data.evaluation_prompts=0", "data.evaluation=null", "checkpoint_every=1", "steps=60"),
    *("cluster.silence_s=40", "cluster.max_restarts=6"),
)
NOTICED_S, RECOVERED_S = 60, 180
UNLIKE = ("time", "seconds/", "speed/", "actor/", "idle/", "run/", "critic/seconds_per_response", "trainer/seconds")
"""Begin the names of numbers that depend on timing."""
FAULTS = (
    ("freeze", ("RolloutActor", "VLLM::"), "rollout-0 has answered nothing"),
    ("freeze", ("TrainerActor",), "trainer-"),
    ("kill", ("raylet",), "was lost"),
    ("kill", ("gcs_server",), "the Ray session was lost"),
)


def test_what_hangs_is_named_and_gone_on_from(tmp_path: Path) -> None:
    with Running(tmp_path / "run", *SETTINGS) as running:
        running.read_until("step  2/60")
        for kind, names, said in FAULTS:
            at = len(running.output)
            begun = time.monotonic()
            if kind == "freeze":
                running.freeze(*names)
            else:
                running.find(*names)[-1].kill()
            running.read_past(said)
            noticed = time.monotonic() - begun
            running.read_steps(2)
            recovered = time.monotonic() - begun
            print(f"{kind} {names[-1]} of {names[0]}: noticed {noticed:.0f} s, two steps on {recovered:.0f} s")
            assert noticed < NOTICED_S and recovered < RECOVERED_S, running.output[at:]

        running.read_steps(20)  # over a minute: for so long Ray looks for a head that is gone
        ended = running.interrupt(signal.SIGINT)
    seen = numbers(steps_in(ended.run_dir))
    assert sorted(seen) == list(range(len(seen)))
    again = [numbers(steps_in(folder)) for folder in (ended.run_dir / "rolled_back").glob("*")]
    for step, line in [pair for lines in again for pair in lines.items()]:
        assert seen.get(step, line) == line, f"step {step} has other numbers when it is done again"


def numbers(lines: list[dict[str, Any]]) -> dict[int, str]:
    """Of each step, without those that depend on timing."""
    return {
        line["step"]: json.dumps({name: value for name, value in line.items() if not name.startswith(UNLIKE)})
        for line in lines
    }
