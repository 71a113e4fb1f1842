"""The benchmark of the tiny critic on responses of the tiny policy, both on vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]


def test_the_tiny_world_is_sampled_and_judged(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "capo_ray.critic_bench", "critic=tiny", "data=arithmetic", "count=16", "k=2"]
    done = subprocess.run(
        [*command, f"out={tmp_path / 'out'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if "Triton" in line or "vllm" in line] == []
    figures = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert figures["summary"]["responses"] == 16 and figures["summary"]["tokens_per_response"] > 2
    assert {(row["vote"], row["k"]) for row in figures["scores"]} >= {("intersection", 1), ("average", 2)}
    lines = (tmp_path / "out" / "replies.jsonl").read_text().splitlines()
    assert len({json.loads(line)["item"]["question"] for line in lines}) == 16
