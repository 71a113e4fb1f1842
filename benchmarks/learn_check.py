"""Does `tiny_cpu` learn? The whole run with several seeds; fails unless each of them does.

    python benchmarks/learn_check.py seeds=0,1,2 points=15 steps=100

Each run evaluates the same held-out problems before and after, with the exact checker of the arithmetic world. What
must rise is the share of responses whose answer and whose every step are right. Other keys go to the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from capo_ray.config.block import setting
from capo_ray.config.listing import beside_run
from capo_ray.config.own_settings import BesideRun, read_own
from capo_ray.program import run_program

ROOT = Path(__file__).resolve().parents[1]
SHARE = "evaluation/truth/right_answer_and_process"


class Settings(BesideRun):
    """Of this program."""

    seeds: tuple[int, ...] = setting("a run for each", (0, 1, 2))
    points: float = setting("percentage points that the share must rise by", 15.0)


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    with tempfile.TemporaryDirectory(prefix="learn-check-") as folder:
        rises = [run(seed, given.overrides, Path(folder) / f"seed-{seed}") for seed in given.seeds]
    failed = [seed for seed, rise in zip(given.seeds, rises, strict=True) if rise < given.points]
    verdict = f"seeds {failed} rose by less" if failed else "every seed did"
    print(f"rise of at least {given.points:g} points: {verdict}")
    return 1 if failed else 0


def run(seed: int, overrides: Sequence[str], run_dir: Path) -> float:
    """Percentage points that the share rose by."""
    began = time.monotonic()
    command = [sys.executable, "-m", "capo_ray.launch", "+experiment=tiny_cpu", f"seed={seed}", f"run_dir={run_dir}"]
    subprocess.run([*command, "tracking.wandb=off", *overrides], cwd=ROOT, check=True)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    before, *_, after = [line for line in lines if SHARE in line]
    rise = 100 * (after[SHARE] - before[SHARE])
    print(
        f"seed {seed}: {100 * before[SHARE]:.1f} % -> {100 * after[SHARE]:.1f} % right answer and right process, "
        f"{rise:+.1f} points in {after['step']} steps, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return rise


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=beside_run(Settings), bare=True))
