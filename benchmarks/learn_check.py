"""Does `tiny_cpu` learn? The whole run with several seeds; fails unless each of them does.

    python benchmarks/learn_check.py [--seeds 0 1 2] [--points 15] [key=value ...]

Each run evaluates the same held-out problems before and after, with the exact checker of the arithmetic world. What
must rise is the share of responses whose answer and whose every step are right. Other arguments go to the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARE = "evaluation/truth/right_answer_and_process"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--points", type=float, default=15.0, help="percentage points that the share must rise by")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="learn-check-") as folder:
        rises = [run(seed, overrides, Path(folder) / f"seed-{seed}") for seed in options.seeds]
    failed = [seed for seed, rise in zip(options.seeds, rises, strict=True) if rise < options.points]
    verdict = f"seeds {failed} rose by less" if failed else "every seed did"
    print(f"rise of at least {options.points:g} points: {verdict}")
    return 1 if failed else 0


def run(seed: int, overrides: list[str], run_dir: Path) -> float:
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
    sys.exit(main())
