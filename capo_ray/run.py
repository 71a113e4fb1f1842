"""One run, from what it needs to what it leaves: found, started, trained, exported, and told.

Leaves out the command line, messages and exit codes (launch), the parts (build) and the loop (driver).
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ray.config.run import Config
from capo_ray.durable import write_text

if TYPE_CHECKING:
    from capo_ray.cluster.crew import RayCrew
    from capo_ray.cluster.hiring import WarmEngines


async def run(config: Config, run_dir: Path, *, warm: WarmEngines | None = None) -> None:
    """One run, from what it needs to what it leaves. With `warm` it is one of several in a Ray session that is there,
    and takes its engines from those before."""
    from rich.console import Console

    from capo_ray.build import prepare, running_crew
    from capo_ray.cluster.gauges import RunGauges
    from capo_ray.cluster.restarts import outlive
    from capo_ray.cluster.session import ray_session
    from capo_ray.driver import train
    from capo_ray.tracking import Tracker

    async def work(crew: RayCrew) -> None:
        await train(
            crew,
            steps=config.steps,
            max_staleness=config.algorithm.max_staleness,
            checkpoint_every=config.checkpoint_every,
            evaluate_every=config.evaluate_every,
        )
        await crew.export()

    found = prepare(config, run_dir)
    write_config(config, run_dir)
    if found.template is not None:
        (run_dir / "critic_prompt.jinja").write_text(found.template.source, encoding="utf-8")
    tracker = Tracker.open(config, run_dir)
    try:
        with (
            nullcontext() if warm is not None else ray_session(config.cluster, logs=run_dir / "logs"),
            closing(RunGauges(run_dir.name)) as gauges,
        ):
            tracker.add(gauges)
            await outlive(
                partial(running_crew, config, found, run_dir, tracker, warm),
                work,
                max_restarts=config.cluster.max_restarts,
                on_restart=tracker.restarted,
            )
    finally:
        tracker.finish()
    if (table := tracker.table()) is not None:
        Console().print(table)


def write_config(config: Config, run_dir: Path) -> None:
    """The whole configuration as it was resolved; a resumed run overwrites it with what it goes on with."""
    import yaml

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(run_dir / "config.yaml", text)
