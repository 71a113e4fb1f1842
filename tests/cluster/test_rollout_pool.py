"""The rollout pool on real Ray actors whose engine is a small fake: deaths, retries, balance, the gate."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cluster.arrivals import Errand, Handed
from capo_ray.cluster.gate import Gate
from capo_ray.engines.protocols import NotItsTurn, Stage
from capo_ray.types import Metrics, Prompt, Rollout, Sampling

pytestmark = pytest.mark.ray

PROMPT = Prompt(id="p", question="q", token_ids=(1, 2), answer="1")
SAMPLING = Sampling(max_tokens=4)
ERRAND = Errand(kind="score", seed=0, step=1)


class FakeEngine:
    """Gives the seed as the response; as long as `fuse` exists it dies after two responses, or, where the file has a
    text, gives no further one; then removes it."""

    def __init__(self, name: str, fuse: str = "") -> None:
        self.name = name
        self.dead = False
        self.version = -1
        self._fuse = Path(fuse) if fuse else None

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        for number, (index, seed) in enumerate(seeds.items()):
            if number == 2 and self._fuse is not None and self._fuse.exists():
                await asyncio.sleep(0.3)  # the responses before are on their way
                stuck = self._fuse.read_text()
                self._fuse.unlink()
                if stuck:
                    await asyncio.sleep(3600)
                os._exit(1)
            yield Rollout(
                prompt_id=prompt.id,
                index=index,
                text=str(seed),
                finish="stop",
                token_ids=(seed,),
                logprobs=(0.0,),
                char_ends=(len(str(seed)),),
                versions=(0,),
            )

    def metrics(self) -> Metrics:
        return {}

    async def take_weights(self, stage: Stage, given: Mapping[str, Any]) -> None:
        self.version = given["version"]

    async def pulse(self) -> None:
        os._exit(1)


class Judge:
    """Stands for an aggregator shard."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    async def take(self, handed: Sequence[Handed]) -> None:
        for prompt, rollout, errand in handed:
            assert (prompt, errand) == (PROMPT, ERRAND)
            self.seen.append((rollout.index, rollout.text))

    async def held(self) -> list[int]:
        return [index for index, _ in self.seen]

    async def all(self) -> list[tuple[int, str]]:
        return sorted(self.seen)


class Broken:
    async def take(self, handed: Sequence[Handed]) -> None:
        raise ValueError("this judge is broken")


class Mortal:
    async def take(self, handed: Sequence[Handed]) -> None:
        os._exit(1)


def make(name: str, fuse: str = "") -> FakeEngine:
    return FakeEngine(name, fuse)


def worker(ray: Any, name: str, fuse: str = "", **options: Any) -> Any:
    from capo_ray.cluster.actors import RolloutActor

    return (
        ray.remote(RolloutActor).options(num_cpus=0, max_concurrency=100, **options).remote(partial(make, name, fuse))
    )


def judge_of(ray: Any, kind: type) -> Any:
    """Once it takes what comes: a worker that dies does not wait for that."""
    made = ray.remote(kind).options(num_cpus=0).remote()
    ray.get(made.__ray_ready__.remote())
    return made


def sampled_for(pool: Any, shard: Any, seeds: Mapping[int, int]) -> Awaitable[None]:
    """As the crew has it done."""
    return pool.generate(
        lambda worker, some: worker.sample_for.remote(shard, ERRAND, PROMPT, SAMPLING, some),
        seeds,
        lambda: shard.held.remote(),
        max_tokens=SAMPLING.max_tokens,
    )


async def no_revival() -> None:
    raise AssertionError("nobody should have to be revived")


def test_what_a_dead_worker_owed_is_sampled_elsewhere_from_the_same_seeds(
    ray_here: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from capo_ray.cluster.rollout_pool import RolloutPool

    fuse = tmp_path / "fuse"
    fuse.touch()
    workers = [worker(ray_here, "a", str(fuse)), worker(ray_here, "b")]
    judge = judge_of(ray_here, Judge)

    async def use() -> tuple[list[tuple[int, str]], int]:
        pool = RolloutPool(workers, Gate(), revive=no_revival)
        seeds = {index: 100 + index for index in range(6)}
        await sampled_for(pool, judge, seeds)
        return await judge.all.remote(), pool.num_deaths

    seen, deaths = asyncio.run(use())
    assert deaths == 1 and not fuse.exists()
    assert "rollout worker 0 died: " in caplog.text
    assert seen == [(index, str(100 + index)) for index in range(6)]


def test_a_worker_that_delivers_nothing_is_ended(
    ray_here: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process is well, and would answer its pulse."""
    from capo_ray.cluster.rollout_pool import RolloutPool

    fuse = tmp_path / "fuse"
    fuse.write_text("stuck")
    workers = [worker(ray_here, "a", str(fuse), max_restarts=1), worker(ray_here, "b")]
    judge = judge_of(ray_here, Judge)

    async def use() -> list[tuple[int, str]]:
        pool = RolloutPool(workers, Gate(), revive=no_revival, least_s=4)
        seeds = {index: 100 + index for index in range(6)}
        await sampled_for(pool, judge, seeds)
        return await judge.all.remote()

    assert asyncio.run(use()) == [(index, str(100 + index)) for index in range(6)]
    assert "waiting for a response of rollout worker 0 since 2 s" in caplog.messages
    assert "rollout worker 0 has delivered nothing for 4 s: it is ended" in caplog.messages


def test_one_that_was_started_again_without_an_engine_counts_as_dead(caplog: pytest.LogCaptureFixture) -> None:
    """In turns it has none before its next turn (engines.sleeper)."""
    from ray.exceptions import RayTaskError

    from capo_ray.cluster.rollout_pool import RolloutPool

    async def asked(worker: Any, seeds: Mapping[int, int]) -> str:
        if worker == "fresh":
            raise RayTaskError("sample_for", "", NotItsTurn("rollout-0 sleeps")).as_instanceof_cause()
        return worker

    async def nothing() -> list[int]:
        return []

    async def use() -> int:
        pool = RolloutPool(["fresh", "awake"], Gate(), revive=no_revival)
        for _ in range(3):
            assert await pool.generate(asked, {0: 1}, nothing, max_tokens=1) == "awake"
        return pool.num_deaths

    assert asyncio.run(use()) == 1
    assert "rollout worker 0 died: NotItsTurn: rollout-0 sleeps" in caplog.messages


def test_when_all_are_dead_they_are_revived_and_the_work_is_done(ray_here: Any, tmp_path: Path) -> None:
    from capo_ray.cluster.patience import when_up
    from capo_ray.cluster.rollout_pool import RolloutPool

    fuse = tmp_path / "fuse"
    fuse.touch()
    alone = worker(ray_here, "a", str(fuse), max_restarts=1)
    judge = judge_of(ray_here, Judge)
    revivals = []

    async def revive() -> None:
        await when_up(alone, "the worker")
        revivals.append(1)

    async def use() -> list[tuple[int, str]]:
        pool = RolloutPool([alone], Gate(), revive=revive)
        await sampled_for(pool, judge, {index: index for index in range(5)})
        return await judge.all.remote()

    assert asyncio.run(use()) == [(index, str(index)) for index in range(5)]
    assert revivals == [1]


@pytest.mark.parametrize("started_again", [False, True])
def test_one_that_died_while_nobody_asked_it_is_waited_for_before_a_sync(
    ray_here: Any, started_again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether or not Ray has started it again by then, and when it is the only one too."""
    from ray.exceptions import RayActorError

    from capo_ray.cluster.patience import when_up
    from capo_ray.cluster.rollout_pool import RolloutPool

    alone = worker(ray_here, "a", max_restarts=1)
    revivals = []

    async def revive() -> None:
        await when_up(alone, "the worker")
        revivals.append(1)

    async def use() -> int:
        pool = RolloutPool([alone], Gate(), revive=revive)
        for version in (0, 1):
            await pool.ready_for_weights()
            await alone.take_weights.remote("finish", {"version": version})
        assert revivals == [] and pool.num_deaths == 0
        with pytest.raises(RayActorError):
            await alone.pulse.remote()
        if started_again:
            await when_up(alone, "the worker")
        await pool.ready_for_weights()
        await alone.take_weights.remote("finish", {"version": 2})
        return pool.num_deaths

    assert asyncio.run(use()) == 1
    assert revivals == [1] and "rollout worker 0 died: " in caplog.text


def test_a_failure_of_the_judge_reaches_the_caller(ray_here: Any) -> None:
    from capo_ray.cluster.rollout_pool import RolloutPool

    broken = judge_of(ray_here, Broken)

    async def use() -> None:
        pool = RolloutPool([worker(ray_here, "a")], Gate(), revive=no_revival)
        await sampled_for(pool, broken, {0: 1})

    with pytest.raises(ValueError, match="this judge is broken"):
        asyncio.run(use())


def test_a_shard_that_dies_is_the_callers_loss_and_no_workers_death(ray_here: Any) -> None:
    from capo_ray.cluster.faults import is_loss
    from capo_ray.cluster.rollout_pool import RolloutPool

    pool = RolloutPool([worker(ray_here, "a")], Gate(), revive=no_revival)
    with pytest.raises(Exception) as raised:
        asyncio.run(asyncio.wait_for(sampled_for(pool, judge_of(ray_here, Mortal), {0: 1}), 30))
    assert is_loss(raised.value) and not pool.num_deaths


def test_the_gate_is_free_once_all_is_sampled() -> None:
    """And not before; weights may move while it is judged."""
    from capo_ray.cluster.rollout_pool import RolloutPool

    async def use() -> None:
        gate, sampled = Gate(), asyncio.Event()
        pool = RolloutPool([None], gate, revive=no_revival)
        group = asyncio.create_task(
            pool.generate(lambda worker, seeds: sampled.wait(), {0: 1}, no_revival, max_tokens=1)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), gate.exclusive():
                pass
        sampled.set()
        await group
        async with asyncio.timeout(5), gate.exclusive():
            pass

    asyncio.run(use())


def test_workers_with_frozen_weights_are_one_engine_that_outlives_a_death(ray_here: Any, tmp_path: Path) -> None:
    from capo_ray.cluster.frozen_pool import frozen_pool
    from capo_ray.config.compose import compose

    fuse = tmp_path / "fuse"
    fuse.touch()

    async def use() -> list[list[tuple[int, str]]]:
        config = compose(["+experiment=tiny_cpu", "rollout.workers=2"])
        made = (partial(make, "a", str(fuse)), partial(make, "b"))
        async with frozen_pool(config, lambda seat: (made[seat.number],)) as pool:

            async def one(seeds: Mapping[int, int]) -> list[tuple[int, str]]:
                return sorted(
                    [(rollout.index, rollout.text) async for rollout in pool.generate(PROMPT, SAMPLING, seeds)]
                )

            shown = await asyncio.gather(*(worker.__ray_call__.remote(repr) for worker in pool._workers))
            assert shown == [f"rollout-{n}: samples from asset:tiny_policy" for n in range(2)]
            return [*await asyncio.gather(*(one({0: n, 1: n, 2: n}) for n in range(4))), await one({0: 9})]

    found = [sorted(set(responses)) for responses in asyncio.run(use())]
    assert found == [*([(0, str(n)), (1, str(n)), (2, str(n))] for n in range(4)), [(0, "9")]]
    assert not fuse.exists()
