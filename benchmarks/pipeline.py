"""How much of the time is lost between engines, and what does a response cost the processes around them?

    python benchmarks/pipeline.py [scenes=8:256:0,8:256:1,32:2048:0,128:10000:0] [out=FILE.json]

A scene is ENGINES:RESPONSES:STALENESS, responses by the step. The driver's loop, the crew, Ray's actors, the aggregator
shards, their verifiers and the ledger are the real ones; rollout engines, critics and the trainer take a set time and
compute nothing (timed_engines), so that what a run would take without any cost of ours is known to the second:

    drained    a sync waits until the batches in flight are sampled, as it does (the gate)
    in flight  rollouts go on through a sync, each engine always as full as at the start of a step; above staleness 0

An efficiency is such a time by the time that was measured. It says nothing where the machine was busy, so above BUSY of
its cores it is left out. CPU time and the bytes that Ray packs are by process, per response, over the steps after the
first ones. Of many engines several share an actor. Prints a table; `out` has every figure. `pids=FILE` says which
process is which while a scene runs, for py-spy.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from process_costs import Look, count_packed, counted
from timed_engines import (
    Pace,
    TimedCritic,
    TimedRollout,
    Work,
    drained,
    in_flight,
    make_sender,
    make_trainer,
    prompts_of,
)

from capo_ray.config.block import Block, setting
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import read_own
from capo_ray.config.run import Config
from capo_ray.program import run_program
from capo_ray.seeds import seed_of
from capo_ray.types import Batch, Metrics, Update

HERE = Path(__file__).resolve().parent
BUSY = 0.6
"""Share of the cores above which times by the clock are not those of the engines any more."""
ROLES = ("driver", "aggregator", "verifiers", "rollout", "critic", "trainer", "ray")


class Settings(Block):
    """Of this program."""

    scenes: tuple[str, ...] = setting(
        "ENGINES:RESPONSES:STALENESS, one after another", ("8:256:0", "8:256:1", "32:2048:0", "128:10000:0")
    )
    measured: int = setting("responses of each scene at least, in whole steps", 1000, unit="responses", gt=0)
    group: int = setting("responses to a prompt", 8, gt=1)
    response: int = setting("median tokens of a response", 500, gt=0)
    most: int = setting("tokens of a response at most", 2048, gt=0)
    critiques: int = setting("of a response; 0: none", 4, ge=0)
    critique: int = setting("median tokens of a critique", 300, gt=0)
    token_ms: float = setting("for a token, sampled or of a critique", 4.0, unit="ms", ge=0)
    update_s: float = setting("of an update", 4.0, unit="s", ge=0)
    sync_s: float = setting("of a weight sync", 0.2, unit="s", ge=0)
    actors: int = setting("rollout actors at most; engines beyond share them", 8, gt=0)
    critics: int = setting("critic actors", 2, gt=0)
    aggregators: int = setting("shards", 1, gt=0)
    out: Path | None = setting("JSON with every figure", None)
    trace: Path | None = setting("folder for each scene's trace.json", None)
    pids: Path | None = setting("file that names the processes of a scene", None)


@dataclass(frozen=True, slots=True)
class Scene:
    engines: int
    responses: int
    staleness: int

    @property
    def warm_up(self) -> int:
        """Steps before those that are measured: libraries load, the pipeline fills."""
        return 1 + self.staleness

    def steps(self, responses: int) -> int:
        """Of a run that measures so many. Those of its end, when no batch is begun any more, have no place in a mean
        over a long run."""
        return self.warm_up + math.ceil(responses / self.responses) + self.staleness

    def __str__(self) -> str:
        return f"{self.engines} engines, {self.responses:,} responses a step, staleness {self.staleness}"


def scene_of(text: str) -> Scene:
    """Raises ConfigError."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts) or not int(parts[0]) or not int(parts[1]):
        raise ConfigError(f"scenes: {text!r} is not ENGINES:RESPONSES:STALENESS, such as 8:256:1")
    return Scene(*map(int, parts))


def config_of(given: Settings, scene: Scene) -> Config:
    """That of a run with the stock settings where it matters here: math-verify, the paper's prompt, ledger, samples."""
    judged = [
        *("critic.canaries=null", "critic.template=paper", "critic.window=8192", "critic.max_critique_tokens=1024"),
        *(f"critic.critiques={given.critiques}", f"critic.workers={given.critics}"),
        "critic.max_sequences=1000000",
    ]
    return compose(
        [
            *("+experiment=tiny_cpu", "data=math", f"steps={scene.steps(given.measured)}"),
            *(judged if given.critiques else ["critic=null", "algorithm.advantage=grpo"]),
            f"prompts_per_step={scene.responses // given.group}",
            f"responses_per_prompt={given.group}",
            f"rollout.workers={min(given.actors, scene.engines)}",
            f"rollout.max_response_tokens={given.most}",
            *(f"algorithm.max_staleness={scene.staleness}", "algorithm.old_logprobs=sampler"),
            *(
                "trainer.ranks=1",
                "trainer.optimisation_passes=1",
                "trainer.responses_per_update=null",
                "trainer.tokens_per_micro_batch=16384",
            ),
            f"reward.aggregators={given.aggregators}",
            *("cluster.object_store_gib=2", "cluster.cpus=64"),
            *("tracking.wandb=off", "tracking.tensorboard=false", f"tracking.trace={given.trace is not None}"),
        ]
    )


def pace_of(given: Settings) -> Pace:
    return Pace(
        response=given.response,
        critique=given.critique,
        token_s=given.token_ms / 1e3,
        update_s=given.update_s,
        sync_s=given.sync_s,
    )


def work_of(given: Settings, config: Config, scene: Scene, step: int) -> Work:
    pace, sampled, judged = pace_of(given), [], []
    for prompt in prompts_of(scene.responses // given.group, step):
        for index in range(given.group):
            seed = seed_of(config.seed, step - 1, prompt.id, index)
            sampled.append(pace.token_s * pace.response_tokens(seed, given.most))
            first = seed_of(config.seed, step - 1, prompt.id, index, "critique")
            critiques = [pace.critique_tokens(first + i, 1024) for i in range(given.critiques)]
            judged.append(sampled[-1] + pace.token_s * max(critiques, default=0))
    return Work(max(sampled), max(judged), sum(sampled) / len(sampled))


# ---- what it takes ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watched:
    """The crew, without checkpoints and evaluations; looks at all processes when a step is done (driver.Crew)."""

    crew: Any
    pids: Mapping[str, Sequence[int]]
    folder: Path
    looks: list[Look] = field(default_factory=list)

    async def restore(self) -> int:
        return int(await self.crew.restore())

    async def collect(self, step: int) -> Batch:
        batch: Batch = await self.crew.collect(step)
        return batch

    async def update(self, batch: Batch) -> Update:
        update: Update = await self.crew.update(batch)
        return update

    async def sync(self, version: int) -> None:
        await self.crew.sync(version)

    async def record(self, batch: Batch, update: Update, seconds: Metrics) -> None:
        await self.crew.record(batch, update, seconds)
        self.looks.append(Look.take(self.pids, self.folder))

    async def evaluate(self, step: int) -> None: ...

    async def save(self, step: int) -> None: ...

    async def export(self, step: int) -> None: ...


@asynccontextmanager
async def lent(
    given: Settings, template: Any, run_dir: Path, counts: Path, config: Config, make: Any
) -> AsyncIterator[list[Any]]:
    """A team of actors around timed engines (placement.Lend)."""
    from capo_ray.cluster.placement import Team
    from capo_ray.training.build import make_aggregator

    pace = pace_of(given)
    async with Team(config, run_dir.name) as team:
        team.hire("rollout", lambda seat: (partial(counted, counts, TimedRollout, pace, seat.name),))
        critics = team.hire("critic", lambda seat: (partial(counted, counts, TimedCritic, pace, seat.name),))
        trainer = partial(counted, counts, make_trainer, pace)
        team.hire("trainer", lambda seat: (trainer, make_sender, seat.number))
        shard = partial(counted, counts, make_aggregator, config, template, list(critics.items()), run_dir / "samples")
        team.hire("aggregator", lambda seat: (shard, seat.number))
        await team.ready()
        yield [team]


async def processes(team: Any) -> dict[str, list[int]]:
    """Role -> process ids."""
    found: dict[str, list[int]] = defaultdict(list)
    for name, actor in team.actors.items():
        found[name.partition("-")[0]].append((await actor.pulse.remote()).pid)
    found["driver"] = [os.getpid()]
    actors = {pid for of in found.values() for pid in of}
    found["ray"] = [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.pid not in actors and child.name() in ("raylet", "gcs_server")
    ]
    return found


async def measured(given: Settings, scene: Scene, folder: Path) -> dict[str, Any]:
    from capo_ray.critics.prompt import find_template
    from capo_ray.models.find import find_model
    from capo_ray.records.trace import TraceFile
    from capo_ray.records.tracking import Tracker
    from capo_ray.training.build import Prepared, running_crew
    from capo_ray.training.driver import train

    config = config_of(given, scene)
    run_dir, counts = folder / "run", folder / "counts"
    counts.mkdir(parents=True)
    count_packed(counts)
    template = find_template(config.critic) if config.critic else None
    found = Prepared(
        policy=find_model(config.policy, "policy", run_dir, seed=0),
        critics=[find_model(config.critic.model, "critic.model", run_dir, seed=0)] if config.critic else [],
        template=template,
        prompts_for=lambda step, attempt: prompts_of(scene.responses // given.group, step),
        held_out=(),
        canaries_for=lambda step, prompts: (),
    )
    teams: list[Any] = []

    @asynccontextmanager
    async def lend(config: Config, make: Any) -> AsyncIterator[Sequence[Any]]:
        async with lent(given, template, run_dir, counts, config, make) as made:
            teams.extend(made)
            yield made

    tracker = Tracker(
        run_dir, config.tracking, run_name="pipeline", resolved_config={}, total_steps=config.steps, console=False
    )
    opened = closing(TraceFile(given.trace)) if given.trace else nullcontext()
    try:
        with opened as trace:
            async with running_crew(config, found, run_dir, tracker, lend, trace) as crew:
                crew = Watched(crew, await processes(teams[0]), counts)
                if given.pids is not None:
                    given.pids.write_text(json.dumps(crew.pids), encoding="utf-8")
                await train(crew, steps=config.steps, max_staleness=scene.staleness)
    finally:
        tracker.finish()
    works = [work_of(given, config, scene, step) for step in range(1, config.steps + 1)]
    return figures(given, scene, works, crew.looks)


def figures(given: Settings, scene: Scene, works: Sequence[Work], looks: Sequence[Look]) -> dict[str, Any]:
    """Of the steps that are measured."""
    first, last = looks[scene.warm_up - 1], looks[-1 - scene.staleness]
    steps = len(looks) - scene.warm_up - scene.staleness
    took = (last.at - first.at) / steps
    ends = drained(works, scene.staleness, given.update_s, given.sync_s)
    ideal = (ends[-1 - scene.staleness] - ends[scene.warm_up - 1]) / steps
    flight = in_flight(works[scene.warm_up :], given.update_s, given.sync_s)
    busy = (last.machine[0] - first.machine[0]) / (last.machine[1] - first.machine[1])
    responses = scene.responses * steps
    return {
        "engines": scene.engines,
        "responses": scene.responses,
        "staleness": scene.staleness,
        "steps": steps,
        "seconds_per_step": took,
        "ideal_drained_s": ideal,
        "ideal_in_flight_s": flight,
        "busy": busy,
        "efficiency_drained": ideal / took if busy <= BUSY else None,
        "efficiency_in_flight": flight / took if busy <= BUSY and scene.staleness else None,
        "cpu_ms": {role: 1e3 * (last.cpu[role] - first.cpu[role]) / responses for role in first.cpu},
        "packed_bytes": {role: (last.packed[role] - first.packed[role]) / responses for role in first.packed},
    }


# ---- the table -------------------------------------------------------------------------------------------------------


def shown(found: Mapping[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    lines = [
        f"  a step took {found['seconds_per_step']:.2f} s over {found['steps']} steps, the machine "
        f"{found['busy']:.0%} busy",
        f"  drained ideal {found['ideal_drained_s']:.2f} s, efficiency {share(found['efficiency_drained'])}; "
        f"in flight {found['ideal_in_flight_s']:.2f} s, {share(found['efficiency_in_flight'])}",
        "  per response   " + "".join(f"{role:>11}" for role in ROLES if role in found["cpu_ms"]),
    ]
    for name, form in (("cpu_ms", "{:11.2f}"), ("packed_bytes", "{:11,.0f}")):
        values = "".join(form.format(found[name][role]) for role in ROLES if role in found[name])
        lines.append(f"  {name:15}{values}")
    return "\n".join(lines)


@contextmanager
def ray_here(given: Settings, scene: Scene, folder: Path) -> Iterator[None]:
    """Actors can import what stands beside this file."""
    from capo_ray.cluster.session import ray_session

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH", ""))))
    with ray_session(config_of(given, scene).cluster, logs=folder / "logs"):
        yield


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    scenes = [scene_of(text) for text in given.scenes]
    found: dict[str, Any] = {"settings": given.model_dump(mode="json"), "cores": os.cpu_count(), "scenes": []}
    for scene in scenes:
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder, ray_here(given, scene, Path(folder)):
            row = asyncio.run(measured(given, scene, Path(folder)))
        found["scenes"].append(row)
        print(f"{scene}\n{shown(row)}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True))
