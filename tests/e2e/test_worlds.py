"""Runs on real text and in the tiny world, where the policy learns, as a user starts them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from running import run

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


def test_real_text_with_a_full_size_tokenizer_and_a_critic_that_makes_no_sense(tmp_path: Path, test_data: Path) -> None:
    """Whole steps in which no critique counts; then as many have failed as the run is told to bear, and it stops."""
    tokenizer = tmp_path / "qwen2"
    tokenizer.mkdir()
    for file in (test_data / "tokenizers" / "qwen2").iterdir():
        content = file.read_bytes()
        (tokenizer / file.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(content) if file.suffix == ".gz" else content
        )
    ran = run(
        tmp_path / "run",
        "+experiment=tiny_cpu_text",
        f"data.path={test_data / 'math' / 'math_train.jsonl.gz'}",
        f"policy.tokenizer={tokenizer}",
        "data.limit=200",
        "steps=9",
        "rollout.max_response_tokens=48",
        "data.evaluation_prompts=4",
        "prompts_per_step=2",
        "responses_per_prompt=2",
        "critic.failure_prompts=4",  # 2 a step
        "critic.max_failed_share=0.9",
        "trainer.ranks=1",
        "tracking.wandb=off",
    )
    assert ran.code == 1, ran.output
    assert re.search(r"16 of the 16 critiques of steps 2 to 3 failed \(truncated 16\); 90% may", ran.output), ran.output
    assert "Traceback" not in ran.output
    assert len(ran.steps) == 2
    assert all(line["critic/valid_share"] < 0.1 for line in ran.steps)


def test_it_learns(tmp_path: Path) -> None:
    """One short seed with half of the critiques, +12.6 points where it was measured. `make learn-check` runs the whole
    experiment with three."""
    short = ("steps=8", "critic.critiques=2", "data.evaluation_prompts=500", "tracking.wandb=off")
    ran = run(tmp_path / "run", "+experiment=tiny_cpu", *short)
    assert ran.code == 0, ran.output
    lines = map(json.loads, (ran.run_dir / "metrics.jsonl").read_text().splitlines())
    name = "evaluation/truth/right_answer_and_process"
    before, after = [line[name] for line in lines if name in line]
    assert after - before > 0.05, ran.output
