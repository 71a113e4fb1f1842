"""An actor that dies is started again so many times an hour, however long a run lasts."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from capo_ray.cluster.revivals import Revivals, limit

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
    late = Revivals(most=3)
    assert late.too_many({"rollout-0": 3}, 0.0) == []
    assert late.too_many({"rollout-0": 4}, HOUR_S) == []


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
        limiting = asyncio.create_task(
            limit(lambda: {"rollout-0": mortal, "critic-0": stillborn}, every_s=0.1, revivals=Revivals(most=1))
        )
        async with asyncio.timeout(60):
            await when_up(mortal, "it")
            await died(mortal)
            with pytest.raises(ActorDiedError):
                await when_up(stillborn, "it")
            with pytest.raises(ActorDiedError):
                await died(mortal)
        limiting.cancel()

    asyncio.run(use())
    assert sorted(line.getMessage() for line in caplog.records if line.name == "capo_ray.cluster.revivals") == [
        "critic-0 died 2 times within an hour: it is not started again",
        "rollout-0 died 2 times within an hour: it is not started again",
    ]
