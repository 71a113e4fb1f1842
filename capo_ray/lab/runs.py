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
from traceback import format_exception
from typing import TYPE_CHECKING

import yaml

from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.data.problem import DataError
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.files.run_dir import RunDirError, claim, hold
from capo_ray.lab.design import Design
from capo_ray.planning.plan import refuse_unfit
from capo_ray.records import tracking
from capo_ray.types import JsonDict, Metrics

if TYPE_CHECKING:
    from capo_ray.cluster.placement import Lend


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


NO_MATTER = (
    *("run_dir", "resume", "cluster.", "tracking.", "keep_", "checkpoint_", "stop_within_s"),
    *("rollout.workers", "critic.workers", "reward.aggregators"),
)
"""Settings, by the beginnings of their names, that change how a run goes and not what comes of it."""


def matters(override: str) -> bool:
    """Whether what comes of a run may change with it."""
    return not override.lstrip("+~").startswith(NO_MATTER)


def folder(out: Path, arm: str, seed: int) -> Path:
    return out / arm / f"seed-{seed}"


class RunFailed(RuntimeError):
    """One of the runs ended with an error."""


def read(config: Config, arm: str, seed: int) -> Result | None:
    """The result of the run that `config` describes; None unless it is finished. Raises RunDirError."""
    run_dir = _run_dir(config)
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        return None
    refuse_other_settings(config, run_dir)
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")  # the last line may be half written
    lines: list[JsonDict] = [json.loads(line) for line in whole.splitlines()]
    evaluations = tracking.evaluations(lines)
    if 0 not in evaluations or config.steps not in evaluations:
        return None
    return Result(
        arm=arm,
        seed=seed,
        before=evaluations[0],
        after=evaluations[config.steps],
        steps=tuple(line for line in lines if not tracking.is_evaluation(line)),
    )


def refuse_other_settings(config: Config, run_dir: Path) -> None:
    """Raises RunDirError where a setting that matters was another in the run in `run_dir`."""
    file = run_dir / "config.yaml"
    then = _leaves(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    now = _leaves(config.model_dump(mode="json"))
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name] and not name.startswith(NO_MATTER):
            raise RunDirError(
                f"{run_dir} was run with {name}={then[name]}, and this design has {now[name]}: choose another out=DIR, "
                "or remove that folder"
            )


def _leaves(block: JsonDict, place: str = "") -> JsonDict:
    """Dotted names of all values, and of blocks, which may be null."""
    found: JsonDict = {}
    for name, value in block.items():
        found |= (
            {f"{place}{name}": "set"} | _leaves(value, f"{place}{name}.")
            if isinstance(value, dict)
            else {f"{place}{name}": value}
        )
    return found


def results(design: Design, out: Path) -> list[Result]:
    """Of all runs that are finished. Raises RunDirError."""
    found = (read(design.config(arm, seed, folder(out, arm, seed)), arm, seed) for arm, seed in design.runs())
    return [result for result in found if result is not None]


def run_all(design: Design, out: Path, runs: Sequence[tuple[str, int]]) -> None:
    """Run what is not finished of `runs`. All configurations are checked before the first.

    Raises ConfigError, DataError, RunDirError, RunFailed.
    """
    configs = {(arm, seed): design.config(arm, seed, folder(out, arm, seed)) for arm, seed in runs}
    left = [key for key, config in configs.items() if read(config, *key) is None]
    print(f"{len(configs)} runs, {len(configs) - len(left)} of them finished before", flush=True)
    if not left:
        return
    cluster = configs[left[0]].cluster
    for arm, seed in left:
        if configs[arm, seed].cluster != cluster:
            raise ConfigError(f"arm {arm}: all arms run in one Ray session, so `cluster` must be the same in all")
        refuse_unfit(configs[arm, seed])
    from capo_ray.cluster.faults import cause_of
    from capo_ray.cluster.session import ray_session
    from capo_ray.lab.engines import KeptEngines

    engines = KeptEngines(out.name)
    with ray_session(cluster, logs=out / "logs"):
        try:
            for number, key in enumerate(left, start=1):
                start, told = monotonic(), f"[{number}/{len(left)}] {key[0]}, seed {key[1]}"
                print(f"\n{told}", flush=True)
                try:
                    asyncio.run(_run(configs[key], engines.lend))
                except (ConfigError, DataError, RunDirError):
                    raise
                except Exception as error:
                    story = _run_dir(configs[key]) / "error.log"
                    story.write_text("".join(format_exception(error)), encoding="utf-8")
                    raise RunFailed(f"{key[0]}, seed {key[1]}: {cause_of(error)}. The whole story: {story}") from error
                print(f"{told}: {monotonic() - start:.0f} s", flush=True)
        finally:
            asyncio.run(engines.close())


def _run_dir(config: Config) -> Path:
    assert config.run_dir is not None
    return Path(config.run_dir)


async def _run(config: Config, lend: Lend) -> None:
    from capo_ray.training.run import run

    run_dir = _run_dir(config)
    resume = Checkpoints(run_dir, keep=1).newest() is not None
    if run_dir.exists() and not resume:
        with hold(run_dir):
            shutil.rmtree(run_dir)  # it was cut off before its first checkpoint
    mine = claim(run_dir, resume=resume)
    try:
        await run(config, run_dir, lend=lend)
    finally:
        mine.release()
