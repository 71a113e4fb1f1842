"""Hiring and dismissal on a real Ray: who is closed, what is left, and which engines stay for the next run."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

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
    from capo_ray.cluster.hiring import Hire

    file = tmp_path / "data.jsonl"
    file.touch()
    overrides = ["+experiment=tiny_cpu_text", "policy.tokenizer=/nowhere", f"data.path={file}", "critic=null"]
    config = compose([*overrides, "algorithm.advantage=grpo"])

    async def use() -> None:
        async with Hire(config) as hire:
            (shard,) = hire.aggregators(partial(make, config, tmp_path / "samples"))
            index, counts = await shard.check.remote(PROMPT, RESPONSE)
            assert (index, counts["correct"]) == (0, 1.0)
            assert len(verifiers()) == 1
            await shard.close.remote()
            assert verifiers() == []
            await shard.check.remote(PROMPT, RESPONSE)  # a late answer starts a new one
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
    from capo_ray.cluster.hiring import Hire

    config = compose(["+experiment=tiny_cpu", "reward.aggregators=2"])

    async def use() -> None:
        async with Hire(config) as hire:
            hire.aggregators(partial(make_leaver, tmp_path))
            await hire.ready()

    asyncio.run(use())
    assert {path.name for path in tmp_path.iterdir()} == {"end-0", "end-1"}


class Engine:
    """Stands for vLLM: says in a folder which process made it, and when it was closed."""

    version = -1
    dead = False

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._closed = folder / f"closed-{name}-{os.getpid()}"
        (folder / f"made-{name}-{os.getpid()}").touch()

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._closed.touch()


def make_engine(folder: Path, settings: dict[str, str], name: str) -> Engine:
    return Engine(folder, name)


def test_the_next_run_takes_the_very_same_engines_and_others_make_room(ray_here: Any, tmp_path: Path) -> None:
    from capo_ray.cluster.hiring import Hire, WarmEngines

    config = compose(["+experiment=tiny_cpu"])
    warm = WarmEngines("laboratory")

    async def hire(**models: str) -> dict[str, Any]:
        """One run with engines of these models; the actors that it had."""
        made = {role: [partial(make_engine, tmp_path, {"model": model}, role)] for role, model in models.items()}
        asked = {"rollouts": made.get("policy", []), "critics": made.get("critic", [])}
        async with Hire(config, **asked, run="a run", warm=warm) as hired:
            await hired.ready()
            return {"policy": hired.rollouts, "critic": hired.critics}

    def files(kind: str, name: str) -> int:
        return len(list(tmp_path.glob(f"{kind}-{name}-*")))

    first = asyncio.run(hire(policy="one", critic="judge"))
    second = asyncio.run(hire(policy="one"))  # needs no critic, which waits idle
    third = asyncio.run(hire(policy="one", critic="judge"))
    assert first == third and second["policy"] == first["policy"] and second["critic"] == []
    assert [files("made", "policy"), files("made", "critic"), files("closed", "*")] == [1, 1, 0]
    asyncio.run(hire(policy="two", critic="judge"))
    assert [files("made", "policy"), files("closed", "policy"), files("closed", "critic")] == [2, 1, 0]

    async def fail() -> None:
        async with Hire(config, run="a run that fails", warm=warm):
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(fail())
    assert [files("closed", "policy"), files("closed", "critic")] == [2, 1]
    asyncio.run(warm.close())


def test_idle_engines_go_where_there_is_no_room_beside_them(
    ray_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from capo_ray.cluster.hiring import Hire, WarmEngines

    config = compose(["+experiment=tiny_cpu"])
    warm = WarmEngines("another laboratory")

    async def use() -> None:
        async with Hire(config, critics=[partial(make_engine, tmp_path, {}, "critic")], warm=warm) as hire:
            await hire.ready()
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.5})  # a run asks for as much
        async with Hire(config, warm=warm):
            assert len(list(tmp_path.glob("closed-critic-*"))) == 1
        await warm.close()

    asyncio.run(use())


def test_a_held_engine_that_is_lost_is_started_anew(ray_here: Any, tmp_path: Path) -> None:
    import ray

    from capo_ray.cluster.hiring import Hire, WarmEngines

    config = compose(["+experiment=tiny_cpu"])
    warm = WarmEngines("a laboratory with losses")

    async def use() -> None:
        found = []
        for _ in range(2):
            async with Hire(config, critics=[partial(make_engine, tmp_path, {}, "critic")], warm=warm) as hire:
                await hire.ready()
                found.append(await hire.critics[0].ready.remote())
            ray.kill(hire.critics[0])
        await warm.close()
        assert found == ["critic"] * 2

    asyncio.run(use())
    assert len(list(tmp_path.glob("made-critic-*"))) == 2


def test_nothing_stays_placed_where_hiring_fails_on_the_way(ray_here: Any, tmp_path: Path) -> None:
    from ray.util.placement_group import placement_group_table

    from capo_ray.cluster.hiring import Hire, WarmEngines

    config = compose(["+experiment=tiny_cpu"])
    warm = WarmEngines("a laboratory that fails")
    two = [partial(make_engine, tmp_path, {}, "rollout")] * 2  # the configuration has a seat for one

    async def use() -> None:
        async with Hire(config, rollouts=two, run="a run that cannot be hired", warm=warm):
            raise AssertionError("it must not begin")

    with pytest.raises(ValueError, match="argument"):
        asyncio.run(use())
    states = {group["name"]: group["state"] for group in placement_group_table().values()}
    placed = ("a laboratory that fails: rollout", "a run that cannot be hired: trainer, aggregator")
    assert [states[name] for name in placed] == ["REMOVED"] * 2


def test_rollout_workers_outlive_a_run_only_where_a_second_trainer_can_reach_them() -> None:
    from capo_ray.cluster.hiring import can_outlive

    config = compose(["+experiment=tiny_cpu"])
    shared = config.model_copy(update={"cluster": config.cluster.model_copy(update={"weight_transfer": "ipc"})})
    told = [can_outlive(config, "rollout"), can_outlive(shared, "rollout"), can_outlive(shared, "critic")]
    assert told == [True, False, True]
    assert not can_outlive(config, "trainer")
