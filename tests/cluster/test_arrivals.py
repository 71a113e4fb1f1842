"""Responses that workers hand over: each once, late ones to no other group, faults to whoever asked for the group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from capo_ray.cluster.arrivals import Arrivals, Courier, Errand, Handed
from capo_ray.types import Prompt, Rollout

PROMPT = Prompt(id="p", question="q", token_ids=(1,), answer="a")
ERRAND = Errand(kind="score", seed=0, step=1)


def rollout(index: int) -> Rollout:
    return Rollout(
        prompt_id="p", index=index, text="", finish="stop", token_ids=(), logprobs=(), char_ends=(), versions=(0,)
    )


async def made(what: str) -> str:
    await asyncio.sleep(0)
    if what == "broken":
        raise ValueError("this one is broken")
    return what


def test_a_group_is_what_was_made_of_each_response_by_its_index() -> None:
    async def use() -> None:
        arrivals = Arrivals()
        for index, what in ((1, "b"), (0, "a"), (1, "again, from a worker that was thought dead")):
            arrivals.begin(PROMPT, rollout(index), ERRAND, made(what))
        assert [one.index for one in arrivals.rollouts(PROMPT, ERRAND)] == [0, 1]
        assert await arrivals.end(PROMPT, ERRAND) == ["a", "b"]
        assert arrivals.rollouts(PROMPT, ERRAND) == ()

    asyncio.run(use())


def test_what_comes_late_is_no_part_of_a_later_steps_group() -> None:
    async def use() -> None:
        arrivals, later = Arrivals(), replace(ERRAND, step=2)
        arrivals.begin(PROMPT, rollout(0), ERRAND, made("a"))
        await arrivals.end(PROMPT, ERRAND)
        arrivals.begin(PROMPT, rollout(0), ERRAND, made("late"))
        arrivals.begin(PROMPT, rollout(0), later, made("fresh"))
        assert await arrivals.end(PROMPT, later) == ["fresh"]

    asyncio.run(use())


def test_a_fault_reaches_whoever_asks_for_the_group_and_ends_the_rest() -> None:
    async def use() -> None:
        arrivals, ended = Arrivals(), asyncio.Event()

        async def long() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()

        arrivals.begin(PROMPT, rollout(0), ERRAND, long())
        arrivals.begin(PROMPT, rollout(1), ERRAND, made("broken"))
        with pytest.raises(ValueError, match="this one is broken"):
            await arrivals.end(PROMPT, ERRAND)
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(use())


class Shard:
    """Counts its calls; each lasts until it is let go, and raises what is to be raised."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.error = error
        self.take = SimpleNamespace(remote=self._take)

    async def _take(self, handed: Sequence[Handed]) -> None:
        self.calls.append([rollout.index for _, rollout, _ in handed])
        await self.go_on.wait()
        if self.error is not None:
            raise self.error


def hand(courier: Courier, shard: Any, *indices: int) -> list[asyncio.Future[None]]:
    return [courier.hand(shard, (PROMPT, rollout(index), ERRAND)) for index in indices]


def test_what_is_finished_while_a_shard_is_called_goes_with_the_next_call() -> None:
    async def use() -> None:
        courier, shard, other = Courier(), Shard(), Shard()
        there = hand(courier, shard, 0, 1)
        await asyncio.sleep(0)
        there += [*hand(courier, shard, 2, 3), *hand(courier, other, 4)]
        await asyncio.sleep(0)
        assert (shard.calls, other.calls) == ([[0, 1]], [[4]])
        assert not any(one.done() for one in there)
        shard.go_on.set(), other.go_on.set()
        await asyncio.gather(*there)
        assert shard.calls == [[0, 1], [2, 3]]
        await asyncio.gather(*hand(courier, shard, 5))
        assert shard.calls[2:] == [[5]]

    asyncio.run(use())


def test_what_cannot_be_sent_is_told_and_the_next_goes() -> None:
    async def use() -> None:
        courier, shard = Courier(), Shard()
        shard.go_on.set()

        def full(handed: Sequence[Handed]) -> None:
            shard.take.remote = shard._take
            raise OSError("the object store is full")

        shard.take.remote = full
        lost = hand(courier, shard, 0, 1)
        assert {str(found) for found in await asyncio.gather(*lost, return_exceptions=True)} == {
            "the object store is full"
        }
        await asyncio.gather(*hand(courier, shard, 2))
        assert shard.calls == [[2]]

    asyncio.run(use())


def test_a_shard_that_fails_fails_those_that_were_handed_to_it_and_no_others() -> None:
    async def use() -> None:
        courier, broken, well = Courier(), Shard(ValueError("broken")), Shard()
        broken.go_on.set(), well.go_on.set()
        lost, kept = hand(courier, broken, 0, 1), hand(courier, well, 2)
        assert [str(found) for found in await asyncio.gather(*lost, return_exceptions=True)] == ["broken", "broken"]
        await asyncio.gather(*kept)
        broken.error = None
        await asyncio.gather(*hand(courier, broken, 3))
        assert broken.calls == [[0, 1], [3]]

    asyncio.run(use())
