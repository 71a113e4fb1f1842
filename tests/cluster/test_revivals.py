"""An actor that dies is started again so many times an hour, however long a run lasts."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from capo_ray.cluster import revivals
from capo_ray.cluster.revivals import Revivals, limit
from capo_ray.config.run import Config

HOUR_S = 3600.0


def test_one_death_a_day_is_borne_for_ever() -> None:
    revivals = Revivals()
    for day in range(1, 100):
        assert revivals.too_many({"rollout-0": day, "critic-0": 0}, day * 24 * HOUR_S) == []


def test_four_within_an_hour_are_too_many() -> None:
    revivals = Revivals(most=3)
    for count in (0, 1, 2, 3):
        assert revivals.too_many({"rollout-0": count, "rollout-1": 1}, count * 600) == []
    assert revivals.too_many({"rollout-0": 4, "rollout-1": 1}, HOUR_S - 1) == ["rollout-0"]
    late = Revivals(most=0)
    assert late.too_many({"rollout-0": 9}, 0.0) == []  # for another run
    assert late.too_many({"rollout-0": 10}, 1.0) == ["rollout-0"]


def test_a_look_that_fails_is_told_and_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is a death that Ray could not be told of in time forgotten."""
    states, killed = iter([0, KeyError("state"), KeyError("state"), 1]), []

    def look(actors: Any, no_place: Any) -> Any:
        state = next(states, 1)
        if isinstance(state, Exception):
            raise state
        return {name: {"NumRestarts": state, "State": "ALIVE"} for name in actors}, {}

    def in_time(seconds: float, kill: Any) -> bool:
        killed.append(kill.args)
        return len(killed) > 1

    monkeypatch.setattr(revivals, "_look", look)
    monkeypatch.setattr(revivals, "ends_within", in_time)

    async def use() -> None:
        often = Revivals(most=0)
        limiting = asyncio.create_task(limit(lambda: {"critic-0": 7}, lambda: {}, every_s=0.01, revivals=often))
        async with asyncio.timeout(20):
            while len(caplog.messages) < 2:
                await asyncio.sleep(0.01)
        limiting.cancel()

    asyncio.run(use())
    assert killed == [(7,), (7,)]
    assert caplog.messages == [
        "how often actors were started again cannot be looked at: 'state'",
        "critic-0 is not started again: it died 1 times within an hour",
    ]


class Mortal:
    def die(self) -> None:
        os._exit(1)

    async def ready(self) -> int:
        return os.getpid()


class Stillborn:
    """Its process ends before anything answers, as that of an engine for which there is no memory."""

    def __init__(self) -> None:
        os._exit(1)

    async def ready(self) -> None: ...


async def died(actor: Any) -> None:
    """Have it die, and wait until Ray has started it again."""
    from ray.exceptions import RayActorError

    from capo_ray.cluster.patience import when_up

    with pytest.raises(RayActorError):
        await actor.die.remote()
    await when_up(actor, "it")


@pytest.mark.ray
def test_what_dies_too_often_is_ended_for_good(ray_here: Any, caplog: pytest.LogCaptureFixture) -> None:
    from ray.exceptions import ActorDiedError

    from capo_ray.cluster.patience import when_up
    from capo_ray.cluster.placement import AGAIN

    mortal, stillborn = (ray_here.remote(kind).options(num_cpus=0, **AGAIN).remote() for kind in (Mortal, Stillborn))

    async def use() -> None:
        revivals, actors = Revivals(most=1), {"rollout-0": mortal, "critic-0": stillborn}
        limiting = asyncio.create_task(limit(lambda: actors, lambda: {}, every_s=0.1, revivals=revivals))
        async with asyncio.timeout(60):
            await when_up(mortal, "it")
            while not revivals._counted:  # from its first look on
                await asyncio.sleep(0.05)
            await died(mortal)
            with pytest.raises(ActorDiedError):
                await when_up(stillborn, "it")
            with pytest.raises(ActorDiedError):
                await died(mortal)
        limiting.cancel()

    asyncio.run(use())
    assert sorted(line.getMessage() for line in caplog.records if line.name == "capo_ray.cluster.revivals") == [
        "critic-0 is not started again: it died 2 times within an hour",
        "rollout-0 is not started again: it died 2 times within an hour",
    ]


@pytest.mark.ray
def test_a_worker_without_a_machine_is_not_waited_for(ray_here: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A critic is, and a worker that is there is left alone. With what Ray says of a group whose machine is gone."""
    from capo_ray.cluster import placement
    from capo_ray.cluster.placement import Team
    from capo_ray.config.compose import compose

    homeless, critic, well = (ray_here.remote(Mortal).options(num_cpus=0).remote() for _ in range(3))
    ray_here.get([actor.ready.remote() for actor in (homeless, critic, well)])
    states = {
        actor._actor_id.hex(): {"State": "RESTARTING" if actor is not well else "ALIVE", "NumRestarts": 0}
        for actor in (homeless, critic, well)
    }

    async def use(config: Config, state: str) -> None:
        team: Any = Team(config, "a run", ["rollout"])
        team._group = object()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placement, "placement_group_table", lambda group: {"state": state})
            patch.setattr(revivals, "own_actors", lambda: states)
            actors = {"rollout-0": homeless, "critic-0": critic, "rollout-1": well}
            limiting = asyncio.create_task(limit(lambda: actors, team._no_place, every_s=0.1))
            await asyncio.sleep(1.5)
            limiting.cancel()

    def said() -> list[str]:
        return [line.getMessage() for line in caplog.records if line.name == "capo_ray.cluster.revivals"]

    fits, large = compose(["+experiment=tiny_cpu"]), compose(["+experiment=tiny_cpu", "rollout.workers=99"])
    for config, state in ((fits, "RESCHEDULING"), (large, "CREATED")):
        asyncio.run(use(config, state))
    assert said() == []
    asyncio.run(use(large, "RESCHEDULING"))
    (line,) = said()
    assert line.startswith("rollout-0 is not started again: this run needs 9.9 CPU (there are 2)")
    assert ray_here.get([actor.ready.remote() for actor in (critic, well)])
    with pytest.raises(ray_here.exceptions.ActorDiedError):
        ray_here.get(homeless.ready.remote())
