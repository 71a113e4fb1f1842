"""One run in other ways makes the numbers that it would have made: in turns, where whoever is killed asleep is opened
again at its turn; then with other numbers of everything."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from running import UNEVALUATED, Ran, Running, alike, numbers, run

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(1200)]

SETTINGS = (*UNEVALUATED, "checkpoint_every=2", "keep_checkpoints=3", "steps=5")
FIRST = ("trainer.ranks=2", "trainer.zero_stage=1", "rollout.workers=1", "critic.workers=1", "reward.aggregators=1")
THEN = ("trainer.ranks=1", "trainer.zero_stage=3", "rollout.workers=2", "critic.workers=2", "reward.aggregators=3")
LATE = ("critic/canar", "tokens/canaries", "tokens/critic_prompts")
"""Counted in the step in which they come, which depends on how many critics there are."""
KV_CACHE = 1 << 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    ran = run(tmp_path_factory.mktemp("whole") / "run", *SETTINGS, *FIRST)
    assert ran.code == 0, ran.output
    return ran


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """In turns: a critic's engine killed asleep in step 2, a rollout worker's in step 3, SIGTERM in step 5."""
    with Running(tmp_path_factory.mktemp("turns") / "run", *SETTINGS, *FIRST, "cluster.sharing=turns") as running:
        running.read_until("step 1/5")
        kill_asleep(running, "CriticActor")
        running.read_until("step 2/5")
        kill_asleep(running, "RolloutActor")
        running.read_until("step 4/5")
        return running.interrupt(signal.SIGTERM)


def kill_asleep(running: Running, actor: str) -> None:
    """Kill its engine when that has just given its memory back."""
    engine, most = running.find(actor, "VLLM::")[-1], 0
    while (now := engine.memory_full_info().uss) > most - KV_CACHE // 2:
        most = max(most, now)
        assert running.process.poll() is None, running.process.communicate()[0]
    running.kill(actor, "VLLM::")


def test_engines_killed_asleep_cost_no_numbers(whole: Ran, turned: Ran) -> None:
    for name in ("critic-0", "rollout-0"):
        assert f"{name}: started again; everybody else sleeps until the engine is open" in turned.output
    assert turned.steps[3]["run/rollout_deaths"] == 1
    apart = numbers(whole.steps)
    assert len(turned.steps) >= 4
    for step, line in numbers(turned.steps).items():
        assert line == alike(apart[step]), step


def test_a_run_goes_on_with_other_numbers_of_everything(whole: Ran, turned: Ran, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(turned.run_dir, elsewhere)
    for late in set((elsewhere / "checkpoints").glob("step_*")) - {elsewhere / "checkpoints" / "step_000002"}:
        shutil.rmtree(late)
    before = (elsewhere / "checkpoints" / "step_000002" / "state.json").read_bytes()
    resumed = run(elsewhere, *SETTINGS, *THEN, "resume=true")
    assert resumed.code == 0, resumed.output
    assert (elsewhere / "checkpoints" / "step_000002" / "state.json").read_bytes() == before
    said = json.loads((elsewhere / "checkpoints" / "step_000005" / "trainer" / "trainer.json").read_text())
    assert (said["ranks"], said["zero_stage"], said["step"]) == (1, 3, whole.steps[-1]["trainer/optimizer_steps"] * 5)
    assert [line["step"] for line in resumed.steps] == [1, 2, 3, 4, 5]
    for lines in zip(numbers(whole.steps).values(), numbers(resumed.steps).values(), strict=True):
        one, other = ({name: line[name] for name in line if not name.startswith(LATE)} for line in lines)
        assert other == alike(one, rel=1e-3)
