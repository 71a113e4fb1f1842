"""Nobody samples while weights move."""

import asyncio
import logging
import random

import pytest

from capo_ray.cluster.gate import Gate


def test_many_share_one_holds_alone() -> None:
    """Under a random schedule with cancellations: never a sharer beside an exclusive holder, and everyone gets in."""

    async def scene(seed: int) -> None:
        gate, rng = Gate(), random.Random(seed)
        sharing = alone = most_sharing = 0

        async def sample() -> None:
            nonlocal sharing, most_sharing
            async with gate.shared():
                sharing += 1
                most_sharing = max(most_sharing, sharing)
                try:
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                        assert not alone
                finally:
                    sharing -= 1

        async def sync() -> None:
            nonlocal alone
            async with gate.exclusive():
                alone += 1
                try:
                    for _ in range(rng.randrange(4)):
                        assert alone == 1 and not sharing
                        await asyncio.sleep(0)
                finally:
                    alone -= 1

        tasks = []
        for _ in range(60):
            tasks.append(asyncio.create_task(sync() if rng.random() < 0.2 else sample()))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert sharing == alone == 0 and most_sharing > 1
        async with asyncio.timeout(1), gate.exclusive():
            pass

    for seed in range(50):
        asyncio.run(scene(seed))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_waiting_sync_lets_no_new_sampler_in() -> None:
    async def scene() -> list[str]:
        gate, order, release = Gate(), [], asyncio.Event()

        async def first() -> None:
            async with gate.shared():
                order.append("first")
                await release.wait()

        async def sync() -> None:
            async with gate.exclusive():
                order.append("sync")

        async def second() -> None:
            async with gate.shared():
                order.append("second")

        async with asyncio.TaskGroup() as tasks:
            for start in (first, sync, second):
                tasks.create_task(start())
                await settle()
            assert order == ["first"]
            release.set()
        return order

    assert asyncio.run(scene()) == ["first", "sync", "second"]


def test_a_cancelled_sync_lets_samplers_in_again() -> None:
    async def scene() -> None:
        gate = Gate()

        async def hold() -> None:
            async with gate.exclusive():
                pass

        async with gate.shared():
            sync = asyncio.create_task(hold())
            await settle()
            other = asyncio.create_task(gate.shared().__aenter__())
            await settle()
            assert not other.done()
            sync.cancel()
            await settle()
            assert other.done()

    asyncio.run(scene())


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_an_error_inside_opens_the_gate(kind: str) -> None:
    async def scene() -> None:
        gate = Gate()
        with pytest.raises(ZeroDivisionError):
            async with getattr(gate, kind)():
                raise ZeroDivisionError
        async with asyncio.timeout(1), gate.exclusive():
            pass

    asyncio.run(scene())


def test_a_long_wait_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        gate = Gate("policy weights", patience_s=0.02)
        async with gate.shared(), gate.shared():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), gate.exclusive():
                    pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(scene())
    assert len(caplog.messages) >= 2
    assert "gate policy weights: waiting to be held alone" in caplog.messages[0]
    assert "2 share it, nobody holds it alone, 1 wait to hold it alone" in caplog.messages[0]
