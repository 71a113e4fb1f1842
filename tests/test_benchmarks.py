"""The command of a benchmark still runs, on a run so small that its figures say nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.ray


def run(program: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_pipeline_is_measured_and_traced(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ("measured=4", "group=2", "response=10", "critique=5", "update_s=0.1", "sync_s=0.01", "critics=1")
    given = ("scenes=3:4:1", "actors=2", *small, f"out={out}", f"trace={tmp_path}")
    done = run("pipeline.py", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (scene,) = json.loads(out.read_text())["scenes"]
    assert "3 engines, 4 responses a step, staleness 1" in done.stdout
    assert scene["steps"] == 1
    assert 0 < scene["ideal_drained_s"] < scene["seconds_per_step"]
    for figures in (scene["cpu_ms"], scene["packed_bytes"]):
        assert set(figures) >= {"driver", "aggregator", "verifiers", "rollout", "critic", "trainer", "ray"}
    # a response goes from its worker to its shard with its prompt, its text to a critic; the driver sends prompts alone
    assert all(scene["packed_bytes"][role] > 100 for role in ("driver", "aggregator", "rollout", "critic"))
    _check_trace(json.loads((tmp_path / "trace.json").read_text()), steps=4)


def _check_trace(events: list[dict[str, Any]], *, steps: int) -> None:
    """A lane for every actor with what it does, and no two spans of a row at one time."""
    lanes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[lanes[event["pid"]], event["tid"]].append(event)
    for of_row in rows.values():
        of_row.sort(key=lambda event: event["ts"])
        for before, after in pairwise(of_row):
            assert before["ts"] + before["dur"] <= after["ts"] + 2  # rounded to a microsecond
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for (lane, row), of_row in rows.items():
        assert all((event["name"] == "idle") == (row == 0) for event in of_row)
        seen[lane].update(event["name"] for event in of_row)
    doing = {
        "driver": ("collect", "update", "sync", "record"),
        "rollout-0": ("idle", "sample", "sync"),
        "rollout-1": ("idle", "sample", "sync"),
        "critic-0": ("idle", "judge"),
        "aggregator-0": ("idle", "judge", "vote"),
        "trainer-0": ("idle", "update", "sync"),
    }
    assert set(seen) == set(doing)
    for lane, names in doing.items():
        assert all(seen[lane][name] for name in names), (lane, seen[lane])
    assert seen["driver"]["collect"] == seen["trainer-0"]["update"] == steps
    assert seen["aggregator-0"]["judge"] == 2 * seen["aggregator-0"]["vote"] == 4 * steps


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


@pytest.mark.long
def test_a_step_is_measured(tmp_path: Path) -> None:
    """Without TRL, which no lock has."""
    out = tmp_path / "figures.json"
    small = ("steps=1", "warm_up=1", "prompts=2", "group=2", "per_update=4", "passes=1", "response=8")
    done = run("step.py", "critic=false", *small, f"out={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "TRL is left out; with it: pip install" in done.stdout
    (row,) = json.loads(out.read_text())["rows"].values()
    parts = sum(row[name] for name in ("sampling", "reward", "update", "sync", "other"))
    assert row["seconds"] == pytest.approx(parts) and row["core"] > 0


def test_a_folder_without_trl_is_refused(tmp_path: Path) -> None:
    done = run("step.py", f"trl={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} has no TRL; pip install --no-deps --target {tmp_path} trl==" in done.stderr


@pytest.mark.long
def test_an_update_is_measured_on_one_rank_and_two(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    small = ("rounds=1", "groups=1", "group=4", "prompt=4", "response=4", "vocabulary=50", "hidden=64", "layers=1")
    done = run("update.py", "ranks=1,2", "tokens=256", *small, f"out={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert len(figures["2 ranks, shared"]["gib"]) == 2
    assert 0 < figures["2 ranks, shared"]["gap"] < 1e-5  # from one rank, padded
    assert "2 ranks: tokens/s" in done.stdout


@pytest.mark.long
def test_a_sync_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = run("sync.py", "scenes=1:3", "syncs=1", "hidden=64", "layers=1", f"out={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["1:3"]["gb_per_s"] > 0


@pytest.mark.long
def test_what_a_restart_leaves_is_measured(tmp_path: Path) -> None:
    done = run("restarts.py", "rounds=2", "actors=1", "calls=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a restart leaves" in done.stdout


def test_a_scene_that_is_none_is_refused(tmp_path: Path) -> None:
    done = run("sync.py", "scenes=1:4", cwd=tmp_path)
    assert done.returncode == 2 and "'1:4' is not ENGINES:ZERO" in done.stderr
