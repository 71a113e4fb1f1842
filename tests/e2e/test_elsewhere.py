"""The same run on other machines: resumed with other numbers of everything, it makes the numbers that it would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from running import UNEVALUATED, UNLIKE, run

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(900)]

FIRST = ("trainer.ranks=2", "trainer.zero_stage=1", "rollout.workers=1", "critic.workers=1", "reward.aggregators=1")
THEN = ("trainer.ranks=1", "trainer.zero_stage=3", "rollout.workers=2", "critic.workers=2", "reward.aggregators=3")
LATE = ("critic/canar", "tokens/canaries", "tokens/critic_prompts")
"""Counted in the step in which they come, which depends on how many critics there are."""


def test_a_run_goes_on_with_other_numbers_of_everything(tmp_path: Path) -> None:
    settings = (*UNEVALUATED, "checkpoint_every=2", "keep_checkpoints=3", "steps=4")
    whole = run(tmp_path / "whole", *settings, *FIRST)
    assert whole.code == 0, whole.output
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(whole.run_dir, elsewhere)
    shutil.rmtree(elsewhere / "checkpoints" / "step_000004")
    shutil.rmtree(elsewhere / "policy")
    before = (elsewhere / "checkpoints" / "step_000002" / "state.json").read_bytes()
    resumed = run(elsewhere, *settings, *THEN, "resume=true")
    assert resumed.code == 0, resumed.output
    assert (elsewhere / "checkpoints" / "step_000002" / "state.json").read_bytes() == before
    said = json.loads((elsewhere / "checkpoints" / "step_000004" / "trainer" / "trainer.json").read_text())
    assert (said["ranks"], said["zero_stage"], said["step"]) == (1, 3, whole.steps[-1]["trainer/optimizer_steps"] * 4)
    assert [line["step"] for line in resumed.steps] == [1, 2, 3, 4]
    for one, other in zip(whole.steps, resumed.steps, strict=True):
        alike = {name for name in one if not name.startswith((*UNLIKE, *LATE))}
        assert alike == {name for name in other if not name.startswith((*UNLIKE, *LATE))}
        for name in alike:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), (one["step"], name)
