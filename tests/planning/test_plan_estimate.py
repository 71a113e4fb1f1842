"""Estimates of time: what they say, how they move with the split, and a run's own speeds in place of the table's."""

import json
from pathlib import Path

import pytest

from capo_ray.config.compose import compose
from capo_ray.plan import main
from capo_ray.planning.estimate import estimate, measured, read_profile, splits, times
from capo_ray.planning.hardware import GPUS
from capo_ray.planning.machine import shape_of

PAPER = "+experiment=llama3b_intersection"


def step_of(*overrides: str, gpu: str = "h100") -> float:
    config = compose([PAPER, *overrides])
    assert config.policy.shape and config.critic and config.critic.model and config.critic.model.shape
    return times(config, config.policy.shape, {"critic": config.critic.model.shape}, GPUS[gpu]).step


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PAPER, "gpu=h100"]) == 0
    said = capsys.readouterr().out
    for part in (
        "placement of llama3b_intersection on gpu: 8 GPUs",
        "estimates, on H100 SXM, by a table; nothing was measured",
        "the most: rollout workers",
        "GPU hours",
        "  assumed ",
        "best split of 8 GPUs",
        "meta-llama/Llama-3.2-3B-Instruct (6 GiB), meta-llama/Meta-Llama-3-70B-Instruct (131 GiB)",
        "35.9 GiB a checkpoint",
    ):
        assert part in said
    assert "kv_cache_gib" not in said


def test_more_of_what_is_slow_makes_a_step_shorter() -> None:
    usual = step_of()
    assert step_of("critic.workers=3") < usual
    assert step_of("trainer.ranks=4") < usual
    assert step_of("algorithm.max_staleness=1", "algorithm.importance_cap=2") < usual
    assert step_of("+size=one_node_fp8") < usual
    assert step_of(gpu="a100") > 1.5 * usual
    assert step_of("critic.gpu_memory_share=0.5") > usual  # fewer critiques have room at a time


def test_the_best_split_is_searched_among_those_that_fit() -> None:
    config = compose(["+experiment=qwen7b_intersection"])
    shapes = {"policy": shape_of(config.policy), "critic": shape_of(config.critic.model)}  # type: ignore[union-attr,arg-type]
    found = [
        (made.rollout.workers, made.critic.workers if made.critic else 0, made.trainer.ranks)
        for made in splits(config, 8, 79.6, shapes)
    ]
    assert found == [(1, 1, 3)]  # two ranks do not hold it, and two critics leave no GPU
    assert "best split of 4 GPUs: none fits" in estimate(config, gpus=4)


def test_a_run_gives_its_own_speeds(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {ranks: 4}\n")
    row = {
        "speed/rollout_tokens_per_s": 5000.0,
        "speed/critic_tokens_per_s": 2000.0,
        "response/mean_tokens": 500.0,
        "critic/mean_tokens": 250.0,
        "seconds/update": 30.0,
        "seconds/sync": 2.0,
    }
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n} | row) + "\n" for n in range(3)))
    one = measured(compose([PAPER]), read_profile(str(tmp_path)))
    assert (one.rollout, one.critic, one.update, one.sync) == (192 * 500 / 10000, 768 * 250 / 2000, 60, 2)
    assert one.step == 96 + 60 + 2
    assert f"estimates, at the speeds of {tmp_path}" in estimate(compose([PAPER]), profile=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpu=tpu"], "error: gpu: 'tpu' is not in the table of hardware; there are h100, h200, a100"),
        (["gpus=none"], "error: gpus: must be a whole number, got 'none'"),
        (["profile=/nowhere"], "error: profile: /nowhere is no run's directory (FileNotFoundError"),
    ],
)
def test_what_cannot_be_estimated_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PAPER, *arguments]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_nothing_is_guessed_of_a_cpu() -> None:
    said = estimate(compose(["+experiment=tiny_cpu"]))
    assert said.startswith("estimates: none of time, since it runs on CPU; profile=RUN_DIR takes a run's own speeds")
    assert "downloads               nothing" in said
