"""Processes that hang and a Ray session that goes away, in a run as a user starts it: named, ended, gone on from.

docs/reliability.md has what this prints. Of wandb, a rollout worker's actor and a raylet `make soak` does it.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from running import UNEVALUATED, Running, alike, numbers, steps_in

from capo_ray.faults.processes import slow

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(1200)]

SETTINGS = (
    *UNEVALUATED,
    *("checkpoint_every=1", "cluster.silence_s=30", "cluster.max_restarts=9", "critic.workers=2"),
)
NOTICED_S, RECOVERED_S = 60, 180
FAULTS = (
    ("the session", [("gcs_server",)], ["the Ray session was lost"]),
    (
        "an engine and a critic of two",
        [("RolloutActor", "VLLM::"), ("CriticActor",)],
        ["rollout-0 has answered nothing", "critic-"],
    ),
    (
        "the aggregator and a trainer rank",
        [("AggregatorActor",), ("TrainerActor",)],
        ["aggregator-0 has answered nothing", "trainer-"],
    ),
)
"""What, the processes, what is said of each. The session is killed and first, since Ray looks for a head that is gone
for a minute before it ends a program; the others are frozen, both at once."""
SLOW_S = 40
"""Longer than silence_s."""
ALIKE = 10
"""Steps that are compared with those of a run that is left alone."""


def test_what_hangs_is_named_and_gone_on_from(tmp_path: Path) -> None:
    with Running(tmp_path / "run", *SETTINGS, "steps=90") as running:
        running.read_until("step  2/90")
        at = len(running.output)
        with slow(running.find("RolloutActor", "VLLM::")[-1]):
            time.sleep(SLOW_S)
        running.read_steps(2)
        assert "it is ended" not in running.output[at:], running.output[at:]
        for what, processes, said in FAULTS:
            at, begun = len(running.output), time.monotonic()
            for names in processes:
                if names == ("gcs_server",):
                    running.find(*names)[-1].kill()
                else:
                    running.freeze(*names)
            running.read_past_all(said)
            noticed = time.monotonic() - begun
            running.read_steps(2)
            recovered = time.monotonic() - begun
            print(f"{what}: noticed {noticed:.0f} s, two steps on {recovered:.0f} s")
            assert noticed < NOTICED_S and recovered < RECOVERED_S, running.output[at:]

        ended = running.interrupt(signal.SIGINT)
    seen = numbers(steps_in(ended.run_dir))
    assert sorted(seen) == list(range(1, len(seen) + 1)) and len(seen) >= ALIKE
    with Running(tmp_path / "undisturbed", *SETTINGS, "steps=90") as running:
        running.read_until(f"step {ALIKE}/90")
        undisturbed = numbers(running.interrupt(signal.SIGINT).steps)
    for step, line in [(step, line) for step, line in undisturbed.items() if step <= ALIKE]:
        assert seen.get(step) == alike(line), f"step {step} has other numbers when nothing is amiss"
