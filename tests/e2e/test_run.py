"""The whole pipeline as a user starts it: real Ray, vLLM and DeepSpeed, on CPU."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import QUICK, Ran, Running, ours, run, steps_in

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

OWN_LINES = re.compile(
    r"W waiting for |W checkpoint step_000005 is broken: |step +\d+/|evaluation after |Held-out problems |[┏┃┡│└]"
    r"|Everything of this run: |Look inside it: |Then try |With problems of your own: |\s*$"
)
"""How the lines begin that a run prints when nothing is amiss and nobody asked for more."""


@dataclass(frozen=True)
class Disturbed:
    """Six steps of the tiny experiment. What happens on the way must cost no numbers.

    In step 5, vLLM's own process dies below a critic that has been asked, and then below a rollout worker. The actors
    above end with it, Ray starts all again, and nothing goes back. After it a trainer rank dies, and all goes back to
    the checkpoint of step 3. When step 5 is done again, every process gets SIGTERM, as `timeout` and Slurm send it:
    Ray's own head goes first. The checkpoint of step 5, if one could still be written, is broken by a bit, and so the
    run is resumed from that of step 3 and goes to its end. From there on its roles take turns.
    """

    quiet: str
    """What was printed before anything was done to it."""
    passes: list[list[dict[str, Any]]]
    """Steps 4 and 5 in metrics.jsonl: with restarted engines, after all went back, resumed."""
    interrupted: Ran
    ended: Ran
    reachable: set[str]
    """Ports of the run that other machines reach."""


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    before = ours("/dev/shm")
    run_dir = tmp_path_factory.mktemp("disturbed") / "run"
    with Running(run_dir, *QUICK, "steps=6", "export_every=3") as running:
        running.read_until("step 2/6")
        reachable = running.reachable()
        running.read_until("step 4/6")
        quiet = running.output
        running.kill("CriticActor", "VLLM::")
        running.wait_for("CriticActor")
        running.kill("RolloutActor", "VLLM::")
        running.read_until("step 5/6")
        passes = [steps_in(run_dir)[3:5]]
        running.kill("TrainerActor")
        running.read_until("step 5/6")
        interrupted = running.interrupt(signal.SIGTERM)
    break_last_checkpoint(run_dir)
    passes.append(interrupted.steps[3:5])
    ended = run(run_dir, *QUICK, "steps=6", "export_every=3", "cluster.sharing=turns", "resume=true")
    assert ended.code == 0, ended.output
    assert weights_left(before) == set()
    return Disturbed(quiet, [*passes, ended.steps[3:5]], interrupted, ended, reachable)


def weights_left(before: set[str]) -> set[str]:
    """What is in shared memory for longer than a sync of another run may take."""
    for _ in range(100):
        if not (left := ours("/dev/shm") - before):
            break
        time.sleep(0.1)
    return left


def break_last_checkpoint(run_dir: Path) -> None:
    """One bit of a file of it, where there is one beside that of step 3."""
    checkpoint = max((run_dir / "checkpoints").glob("step_*"))
    if checkpoint.name != "step_000003":
        file = next(file for file in sorted((checkpoint / "trainer").rglob("*.safetensors")))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.fixture(scope="module")
def whole(disturbed: Disturbed) -> Ran:
    return disturbed.ended


def test_what_is_killed_or_interrupted_costs_no_numbers(disturbed: Disturbed) -> None:
    said = disturbed.interrupted.output
    assert said.count("an actor was lost: ") == 1 and "TrainerActor" in said, said
    restarted, back, resumed = disturbed.passes
    assert [step["step"] for step in restarted] == [4, 5]
    assert restarted[1]["critic/retries"] > 0 and not any(step["critic/retries"] for step in [*back, *resumed])
    for steps, restarts in zip(disturbed.passes, (0, 1, 0), strict=True):
        assert [step["run/restarts"] for step in steps] == [restarts] * 2
        for name in ("step", "reward/mean_token_reward", "outcome/accuracy", "response/mean_tokens", "trainer/loss"):
            assert [step[name] for step in steps] == pytest.approx([step[name] for step in restarted], abs=1e-4), name


def test_roles_that_take_turns_make_the_same_numbers(disturbed: Disturbed) -> None:
    _, apart, turns = disturbed.passes
    for one, other in zip(turns, apart, strict=True):
        assert one["turns/wake_s"] > 0 and "turns/wake_s" not in other
        for name in ("critic/recall", "trainer/sampler_gap_mean"):
            assert one.get(name) == pytest.approx(other.get(name), abs=1e-4), name


def test_no_step_stands_twice_in_what_a_run_keeps(whole: Ran) -> None:
    """Steps were done again after a rollback, and once more after a resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (whole.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation/responses" in line] == [0, 6]
    seen = EventAccumulator(str(whole.run_dir / "tensorboard"))
    seen.Reload()
    assert [event.step for event in seen.Scalars("trainer/loss")] == list(range(1, 7))
    assert [event.step for event in seen.Scalars("evaluation/responses")] == [0, 6]
    for folder in ("samples", "critiques", "responses"):
        assert sorted(int(path.name[:6]) for path in (whole.run_dir / folder).iterdir()) == list(range(1, 7)), folder
    of_samples = [(sample["step"], sample["prompt_id"], sample["index"]) for sample in whole.samples]
    assert len(of_samples) == len(set(of_samples))
    aside = [path for path in (whole.run_dir / "rolled_back").glob("*/metrics.jsonl") if steps_in(path.parent)]
    assert aside and all(line["step"] > 3 for path in aside for line in steps_in(path.parent))


def test_no_other_machine_reaches_a_run_that_starts_its_own_ray(disturbed: Disturbed) -> None:
    assert disturbed.reachable == set()


def test_a_run_says_what_it_does_and_leaves_its_files(disturbed: Disturbed, whole: Ran) -> None:
    assert "step 6/6" in whole.output
    assert f"Everything of this run: {whole.run_dir}" in whole.output
    assert f"Look inside it: python -m capo_ray.view {whole.run_dir}\n" in whole.output
    said = (disturbed.quiet + whole.output).splitlines()
    assert [line for line in said if not OWN_LINES.match(line)] == []  # no library's
    for name in (
        "config.yaml",
        "critic_prompt.jinja",
        "metrics.jsonl",
        "samples",
        "tensorboard",
        "logs",
        "checkpoints/step_000006/state.json",
    ):
        assert (whole.run_dir / name).exists(), name
    exports = [path.name for path in sorted((whole.run_dir / "exports").iterdir())]
    assert exports == ["step_000003", "step_000006"]
    last, policy = (whole.run_dir / name / "model.safetensors" for name in ("exports/step_000006", "policy"))
    assert last.read_bytes() == policy.read_bytes()
    assert [line["step"] for line in whole.steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["staleness"] == 0 for line in whole.steps)
    assert sum(line.get("critic/canaries", 0) for line in whole.steps) >= 1


def test_held_out_problems_are_sampled_twice_before_and_after(whole: Ran) -> None:
    lines = map(json.loads, (whole.run_dir / "metrics.jsonl").read_text().splitlines())
    evaluations = [line for line in lines if "evaluation/responses" in line]
    assert [line["step"] for line in evaluations] == [0, 6]
    for line in evaluations:
        assert line["evaluation/responses"] == 2 * 16
        share = line["evaluation/outcome/accuracy"]
        assert line["evaluation/outcome/accuracy_low"] <= share <= line["evaluation/outcome/accuracy_high"]
        assert share <= line["evaluation/outcome/pass_at_k"] <= 2 * share  # one of two is right, or both


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(whole: Ran) -> None:
    """After every sync, or the difference would grow with the steps."""
    for line in whole.steps:
        gaps = {name: value for name, value in line.items() if "gap" in name}
        assert gaps and all(abs(value) < 1e-3 for value in gaps.values()), gaps


def test_samples_hold_credit_that_can_be_checked_by_hand(whole: Ran) -> None:
    assert whole.samples
    for sample in whole.samples:
        assert [step["start"] for step in sample["steps"][1:]] == [step["end"] for step in sample["steps"][:-1]]
        assert len(sample["critiques"]) == 4
        outcome = 2.0 if sample["answer"] == "correct" else 0.0
        paid = set(sample["wrong_steps"] or ())
        for number, step in enumerate(sample["steps"]):
            first, end = step["tokens"]
            assert set(sample["token_rewards"][first:end]) <= {outcome - (number in paid)}


def test_a_run_directory_is_never_mixed(whole: Ran) -> None:
    ran = run(whole.run_dir, *QUICK, "steps=6")
    assert ran.code == 2
    assert f"the run directory {whole.run_dir} exists and is not empty: pass resume=true" in ran.output


def test_the_ledger_scores_as_the_run_did(whole: Ran) -> None:
    """To the last bit, for every response that is in the samples too."""
    from capo_ray.credit.group import score_group
    from capo_ray.records.ledger import read

    scored = {}
    for scheme, groups in read(whole.run_dir):
        for group in groups:
            score = score_group(group.members, scheme.scheme)
            for member, advantages in zip(score.members, score.advantages, strict=True):
                scored[group.step, group.prompt_id, member.rollout.index] = (member.token_rewards, advantages)
    assert len(scored) == 6 * 4 * 4
    assert whole.samples
    for sample in whole.samples:
        rewards, advantages = scored[sample["step"], sample["prompt_id"], sample["index"]]
        assert list(rewards) == sample["token_rewards"]
        assert (None if advantages is None else list(advantages)) == sample["advantages"]
