"""Hiring and dismissal on a real Ray: who is closed, and what is left."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from capo_ray.cluster.arrivals import Errand
from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.types import Prompt, Rollout

pytestmark = pytest.mark.ray

PROMPT = Prompt(id="p", question="What is one half?", token_ids=(1,), answer="\\frac{1}{2}")
RESPONSE = Rollout(
    prompt_id="p", index=0, text="\\boxed{0.5}", finish="stop", token_ids=(1,), logprobs=(0.0,), char_ends=(11,),
    versions=(0,),
)  # fmt: skip


def make(config: Config, samples: Path, *, shard: int, put: Any) -> Any:
    from capo_ray.training.build import make_aggregator

    return make_aggregator(config, None, [], samples, shard=shard, put=put)


def verifiers() -> list[psutil.Process]:
    """Children of any process of this session's Ray that verify answers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended, whether or not somebody has looked
            if "capo_ray.tasks.verify_worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_dismissed_aggregator_has_ended_its_verifiers(ray_here: Any, tmp_path: Path) -> None:
    from capo_ray.cluster.placement import Team

    file = tmp_path / "data.jsonl"
    file.touch()
    overrides = ["+experiment=tiny_cpu_text", "policy.tokenizer=/nowhere", f"data.path={file}", "critic=null"]
    config = compose([*overrides, "algorithm.advantage=grpo"])

    errand = Errand(kind="check", seed=0, step=0)

    async def use() -> None:
        async with Team(config, "a run") as team:
            made = partial(make, config, tmp_path / "samples")
            shard = team.hire("aggregator", lambda seat: (made, seat.number))["aggregator-0"]
            await shard.take.remote([(PROMPT, RESPONSE, errand)])
            (counts,) = await shard.checked.remote(PROMPT, errand)
            assert counts["correct"] == 1.0
            assert len(verifiers()) == 1
            await shard.close.remote()
            assert verifiers() == []
            await shard.take.remote([(PROMPT, RESPONSE, errand)])
            await shard.checked.remote(PROMPT, errand)  # a late answer starts a new one
            assert len(verifiers()) == 1

    asyncio.run(use())
    assert verifiers() == []


class Leaver:
    """Stands for an aggregator; says in a file that it was told to end."""

    def __init__(self, farewell: Path) -> None:
        self._farewell = farewell

    async def end(self) -> None:
        self._farewell.touch()

    def totals(self) -> dict[str, float]:
        return {}

    def engines(self) -> dict[str, dict[str, float]]:
        return {}


def make_leaver(folder: Path, *, shard: int, put: Any) -> Leaver:
    return Leaver(folder / f"end-{shard}")


def test_everybody_is_told_before_the_end(ray_here: Any, tmp_path: Path) -> None:
    from capo_ray.cluster.placement import Team

    config = compose(["+experiment=tiny_cpu", "reward.aggregators=2"])

    async def use() -> None:
        async with Team(config, "a run") as team:
            hired = team.hire("aggregator", lambda seat: (partial(make_leaver, tmp_path), seat.number))
            await team.ready()
            assert list(team.actors) == list(hired) == ["aggregator-0", "aggregator-1"]

    asyncio.run(use())
    assert {path.name for path in tmp_path.iterdir()} == {"end-0", "end-1"}


def test_who_is_hired_again_is_of_a_class_that_was_there(ray_here: Any, tmp_path: Path) -> None:
    """Ray keeps the class of whoever was hired as long as this process lives, so that a new one for each would stay."""
    from capo_ray.cluster.placement import Team
    from capo_ray.cluster.shard import AggregatorActor

    config = compose(["+experiment=tiny_cpu"])

    async def hire() -> None:
        async with Team(config, "a run") as team:
            team.hire("aggregator", lambda seat: (partial(make_leaver, tmp_path), seat.number))
            await team.ready()

    for _ in range(2):
        asyncio.run(hire())
    gc.collect()
    assert len(AggregatorActor.__subclasses__()) == 1
