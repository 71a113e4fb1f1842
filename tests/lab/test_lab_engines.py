"""Which engines stay for the next run, on a real Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role, Seat

pytestmark = pytest.mark.ray

TINY = "+experiment=tiny_cpu"
BOTH = compose([TINY])
NO_CRITIC = compose([TINY, "critic=null", "algorithm=grpo"])


class Engine:
    """Stands for vLLM: says in a folder which process made it, and when it was closed."""

    version = -1
    dead = False

    def __init__(self, folder: Path, model: str, name: str) -> None:
        self.name = name
        self._closed = folder / f"closed-{name}-{os.getpid()}"
        (folder / f"made-{name}-{os.getpid()}").touch()

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._closed.touch()


@asynccontextmanager
async def a_run(
    engines: Any, config: Config, folder: Path, policy: str = "one", run: str = "a run"
) -> AsyncIterator[Any]:
    """The engines of a run with this policy, hired as a run does; by name."""
    from capo_ray.cluster.placement import Team

    def rollout(seat: Seat) -> tuple[Any, ...]:
        return (partial(Engine, folder, policy, seat.name),)

    def critic(seat: Seat) -> tuple[Any, ...]:
        return (partial(Engine, folder, "judge", seat.name),)

    made: dict[Role, Any] = {"rollout": rollout, "critic": critic}
    async with engines.lend(config, made) as ready, Team(config, "a run", ready=ready) as team:
        hired = {name: one for role, make in made.items() for name, one in team.hire(role, make).items()}
        await team.ready()
        assert team.actors == hired
        yield hired


def files(folder: Path, kind: str, name: str) -> int:
    return len(list(folder.glob(f"{kind}-{name}-*")))


def test_the_next_run_takes_the_very_same_engines_and_others_make_room(ray_here: Any, tmp_path: Path) -> None:
    from ray.util.placement_group import placement_group_table

    from capo_ray.lab.engines import KeptEngines

    engines = KeptEngines("laboratory")

    async def one(config: Config, policy: str = "one") -> dict[str, Any]:
        async with a_run(engines, config, tmp_path, policy) as hired:
            return dict(hired)

    first = asyncio.run(one(BOTH))
    second = asyncio.run(one(NO_CRITIC))  # the critic waits idle
    third = asyncio.run(one(BOTH))
    assert list(first) == ["rollout-0", "critic-0"]
    assert first == third and second == {"rollout-0": first["rollout-0"]}
    assert [*(files(tmp_path, "made", name) for name in first), files(tmp_path, "closed", "*")] == [1, 1, 0]
    asyncio.run(one(BOTH, policy="two"))
    closed = [files(tmp_path, "closed", name) for name in first]
    assert [files(tmp_path, "made", "rollout-0"), *closed] == [2, 1, 0]
    placed = {group["name"] for group in placement_group_table().values()}
    assert {"laboratory: rollout", "laboratory: critic", "a run: trainer, aggregator"} <= placed

    async def fail() -> None:
        async with a_run(engines, NO_CRITIC, tmp_path, policy="two"):
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(fail())
    assert [files(tmp_path, "closed", name) for name in first] == [2, 1]
    asyncio.run(engines.close())


def test_idle_engines_go_where_there_is_no_room_beside_them(
    ray_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capo_ray.lab.engines import KeptEngines

    engines = KeptEngines("another laboratory")

    async def use() -> None:
        async with a_run(engines, BOTH, tmp_path):
            pass
        monkeypatch.setattr("capo_ray.lab.engines.there", lambda: {"CPU": 0.4})  # a run without critic asks for as much
        async with a_run(engines, NO_CRITIC, tmp_path):
            assert [files(tmp_path, "closed", name) for name in ("rollout-0", "critic-0")] == [0, 1]
        await engines.close()

    asyncio.run(use())


def test_an_engine_that_is_lost_is_started_anew(ray_here: Any, tmp_path: Path) -> None:
    import ray

    from capo_ray.lab.engines import KeptEngines

    engines = KeptEngines("a laboratory with losses")

    async def use() -> None:
        for _ in range(2):
            async with a_run(engines, BOTH, tmp_path) as hired:
                assert await hired["critic-0"].ready.remote() == "critic-0"
            ray.kill(hired["critic-0"])
        await engines.close()

    asyncio.run(use())
    assert files(tmp_path, "made", "critic-0") == 2


def test_nothing_stays_placed_where_a_run_cannot_be_hired(ray_here: Any, tmp_path: Path) -> None:
    from ray.util.placement_group import placement_group_table

    from capo_ray.cluster.placement import Team
    from capo_ray.lab.engines import KeptEngines

    def nothing(seat: Seat) -> tuple[Any, ...]:
        raise ValueError(f"nothing for {seat.name}")

    async def use() -> None:
        made: dict[Role, Any] = {"rollout": lambda seat: (partial(Engine, tmp_path, "one", seat.name),)}
        async with (
            KeptEngines("a laboratory that fails").lend(NO_CRITIC, made) as ready,
            Team(NO_CRITIC, "a run that cannot be hired", ready=ready) as team,
        ):
            team.hire("trainer", nothing)

    with pytest.raises(ValueError, match="nothing for trainer-0"):
        asyncio.run(use())
    states = {group["name"]: group["state"] for group in placement_group_table().values()}
    placed = ("a laboratory that fails: rollout", "a run that cannot be hired: trainer, aggregator")
    assert [states[name] for name in placed] == ["REMOVED"] * 2


def test_rollout_workers_outlive_a_run_only_where_a_second_trainer_can_reach_them() -> None:
    from capo_ray.lab.engines import can_outlive

    shared = BOTH.model_copy(update={"cluster": BOTH.cluster.model_copy(update={"device": "gpu", "sharing": "pairs"})})
    told = [can_outlive(BOTH, "rollout"), can_outlive(shared, "rollout"), can_outlive(shared, "critic")]
    assert told == [True, False, True]
    assert not can_outlive(BOTH, "trainer")
