"""Roles in turns on the real stack: whoever is killed asleep is opened again at its turn, and no number changes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from running import QUICK, Running, numbers, run

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.long]

STEPS = (*QUICK, "steps=6")
KV_CACHE = 1 << 30


def kill_asleep(running: Running, actor: str) -> None:
    """Kill its engine when that has just given its memory back."""
    engine, most = running.find(actor, "VLLM::")[-1], 0
    while (now := engine.memory_full_info().uss) > most - KV_CACHE // 2:
        most = max(most, now)
        assert running.process.poll() is None, running.process.communicate()[0]
    running.kill(actor, "VLLM::")


def test_engines_killed_asleep_and_a_resume_cost_no_numbers(tmp_path: Path) -> None:
    with Running(tmp_path / "turns", *STEPS, "cluster.sharing=turns") as running:
        running.read_until("step 1/6")
        kill_asleep(running, "CriticActor")
        running.read_until("step 3/6")
        kill_asleep(running, "RolloutActor")
        running.read_until("step 5/6")
        interrupted = running.interrupt(signal.SIGTERM)
    for name in ("critic-0", "rollout-0"):
        assert f"{name}: started again; everybody else sleeps until the engine is open" in interrupted.output
    assert interrupted.steps[4]["run/rollout_deaths"] == 1
    ended = run(tmp_path / "turns", *STEPS, "cluster.sharing=turns", "resume=true")
    assert ended.code == 0, ended.output
    apart = run(tmp_path / "apart", *STEPS)
    assert numbers(ended.steps) == numbers(apart.steps)
