"""The command of a benchmark still runs, on a run so small that its figures say nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.ray


def test_the_pipeline_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ("measured=4", "group=2", "response=10", "critique=5", "update_s=0", "sync_s=0", "critics=1")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "pipeline.py", "scenes=3:4:1", "actors=2", *small, f"out={out}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (scene,) = json.loads(out.read_text())["scenes"]
    assert "3 engines, 4 responses a step, staleness 1" in done.stdout
    assert scene["steps"] == 1
    assert 0 < scene["ideal_drained_s"] < scene["seconds_per_step"]
    for figures in (scene["cpu_ms"], scene["packed_bytes"]):
        assert set(figures) >= {"driver", "aggregator", "verifiers", "rollout", "critic", "trainer", "ray"}
    # a rollout's tokens, log-probabilities and text go to the object store, its prompt with every call
    assert all(scene["packed_bytes"][role] > 100 for role in ("driver", "aggregator", "rollout", "critic"))


def test_the_ideal_is_what_a_schedule_by_hand_is() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from timed_engines import Work, drained
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    works = [Work(sampled_s=8, judged_s=9, mean_s=3), Work(6, 10, 3), Work(7, 8, 3)]
    one = 1 + 9 + 2 + 1
    assert drained(works, 0, update_s=2, sync_s=1) == [one, one + 10 + 2 + 1, one + 13 + 8 + 2 + 1]
    # Both batches begin at 1. The second is sampled by 7 and judged by 11, trained from 13 on, while the third, begun
    # at 13, is sampled until 20; the sync waits for it.
    assert drained(works, 1, update_s=2, sync_s=1) == [13, 21, 24]
