"""The runs of a design: each in a folder of its own, one after the other in one Ray session with the same engines, and
what they measured.

A run that is finished is not run again and one that was cut off goes on from its checkpoint, so that a laboratory can
be stopped at any time. Results are read from the runs' own metrics.jsonl. Leaves out what is said of them (report).
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import TYPE_CHECKING

from capo_ray import tracking
from capo_ray.checkpoint import Checkpoints, claim
from capo_ray.config.run import Config
from capo_ray.lab.design import Design
from capo_ray.types import JsonDict, Metrics

if TYPE_CHECKING:
    from capo_ray.cluster.hiring import WarmEngines


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run measured."""

    arm: str
    seed: int
    before: Metrics
    after: Metrics
    """On held-out problems, after the last step."""
    steps: tuple[Metrics, ...]
    """Of each step, on what it trained on."""

    def mean(self, name: str) -> float | None:
        values = [step[name] for step in self.steps if step.get(name) is not None]
        return fmean(values) if values else None

    def total(self, name: str) -> float:
        return sum(step.get(name) or 0.0 for step in self.steps)


def folder(out: Path, arm: str, seed: int) -> Path:
    return out / arm / f"seed-{seed}"


def read(out: Path, arm: str, seed: int, steps: int) -> Result | None:
    """The result of a run; None unless it is finished."""
    file = folder(out, arm, seed) / "metrics.jsonl"
    if not file.is_file():
        return None
    lines: list[JsonDict] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    evaluations = tracking.evaluations(lines)
    if 0 not in evaluations or steps not in evaluations:
        return None
    return Result(
        arm=arm,
        seed=seed,
        before=evaluations[0],
        after=evaluations[steps],
        steps=tuple(line for line in lines if not tracking.is_evaluation(line)),
    )


def results(design: Design, out: Path) -> list[Result]:
    """Of all runs that are finished."""
    steps = {arm: design.config(arm, design.first_seed, out).steps for arm in design.arms}
    found = (read(out, arm, seed, steps[arm]) for arm, seed in design.runs())
    return [result for result in found if result is not None]


def run_all(design: Design, out: Path, runs: Sequence[tuple[str, int]]) -> None:
    """Run what is not finished of `runs`. All configurations are checked before the first. Raises ConfigError."""
    configs = {(arm, seed): design.config(arm, seed, folder(out, arm, seed)) for arm, seed in runs}
    left = [key for key, config in configs.items() if read(out, *key, config.steps) is None]
    print(f"{len(configs)} runs, {len(configs) - len(left)} of them finished before", flush=True)
    if not left:
        return
    from capo_ray.cluster.hiring import WarmEngines
    from capo_ray.cluster.session import ray_session

    warm = WarmEngines(out.name)
    with ray_session(configs[left[0]].cluster, logs=out / "logs"):
        try:
            for number, key in enumerate(left, start=1):
                start = monotonic()
                print(f"\n[{number}/{len(left)}] {key[0]}, seed {key[1]}", flush=True)
                asyncio.run(_run(configs[key], warm))
                print(f"[{number}/{len(left)}] {key[0]}, seed {key[1]}: {monotonic() - start:.0f} s", flush=True)
        finally:
            asyncio.run(warm.close())


async def _run(config: Config, warm: WarmEngines) -> None:
    from capo_ray.run import run

    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    resume = Checkpoints(run_dir, keep=1).newest() is not None
    if run_dir.exists() and not resume:
        shutil.rmtree(run_dir)  # it was cut off before its first checkpoint
    claim(run_dir, resume=resume)
    await run(config, run_dir, warm=warm)
