"""Processes that hang and a Ray session that goes away, in a run as a user starts it: named, ended, gone on from.

docs/reliability.md has what this prints. Of wandb, a rollout worker's actor and a raylet `make test-faults` does it.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from running import QUICK, Running, numbers, steps_in

from capo_ray.faults.processes import slow

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(1500)]

SETTINGS = (
    *QUICK[:3],
    *("tracking.wandb=offline", "data.evaluation_prompts=0", "data.evaluation=null", "checkpoint_every=1"),
    *("cluster.silence_s=40", "cluster.max_restarts=9", "critic.workers=2"),
)
NOTICED_S, RECOVERED_S = 60, 180
FAULTS = (
    ("freeze", ("RolloutActor", "VLLM::"), "rollout-0 has answered nothing"),
    ("freeze", ("CriticActor",), "critic-"),
    ("freeze", ("AggregatorActor",), "aggregator-0 has answered nothing"),
    ("freeze", ("TrainerActor",), "trainer-"),
    ("kill", ("gcs_server",), "the Ray session was lost"),
)
SLOW_S = 50
"""Longer than silence_s."""


def test_what_hangs_is_named_and_gone_on_from(tmp_path: Path) -> None:
    with Running(tmp_path / "run", *SETTINGS, "steps=60") as running:
        running.read_until("step  2/60")
        at = len(running.output)
        with slow(running.find("RolloutActor", "VLLM::")[-1]):
            time.sleep(SLOW_S)
        running.read_steps(2)
        assert "it is ended" not in running.output[at:], running.output[at:]
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
    assert sorted(seen) == list(range(1, len(seen) + 1))
    with Running(tmp_path / "undisturbed", *SETTINGS, "steps=60") as running:
        running.read_until("step 30/60")
        undisturbed = numbers(running.interrupt(signal.SIGINT).steps)
    assert len(undisturbed) >= 30
    for step, line in undisturbed.items():
        assert seen.get(step, line) == line, f"step {step} has other numbers when nothing is amiss"
