"""Responses that workers hand over: each once, late ones to no other group, faults to whoever asked for the group."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from capo_ray.cluster.arrivals import Arrivals, Errand
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
