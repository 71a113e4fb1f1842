"""The cache of critiques: what is equal is judged once, and what is kept changes no result."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from asked import asked_with
from seeded_critic import SeededCritic
from virtual_time import play

from capo_ray.credit.critique import Reference
from capo_ray.critics.cache import CritiqueCache
from capo_ray.critics.service import Critics, Voter
from capo_ray.engines.protocols import Message, Replies
from capo_ray.types import Critique, Sampling

Question = tuple[str, str]
"""(question, step)"""


def service(engine: SeededCritic, **given: object) -> Critics:
    return Critics([engine], asked_with(**({"cache": 8} | given)))


async def judge(critics: Critics, asked: Question, seed: int = 0) -> tuple[Critique, ...]:
    question, step = asked
    return await critics.judge(question, Reference("answer", "2"), [step], response_key="p/0", seed=seed)


async def judge_in_turn(critics: Critics, many: Sequence[Question]) -> list[tuple[Critique, ...]]:
    return [await judge(critics, asked, seed) for seed, asked in enumerate(many)]


def unmarked(critiques: Sequence[Critique]) -> list[Critique]:
    return [replace(critique, cached=False, num_tokens=0, kept_tokens=0) for critique in critiques]


A, B, C = ("1 + 1?", "2"), ("1 + 1?", "3"), ("2 + 2?", "2")


def test_an_equal_response_is_not_judged_again() -> None:
    engine = SeededCritic(num_steps=1)
    critics = service(engine)
    first, other, third, again = asyncio.run(judge_in_turn(critics, [A, B, C, A]))
    assert len(engine.asked) == 3
    assert unmarked(again) == unmarked(first) != unmarked(other) != unmarked(third)
    assert [(c.cached, c.num_tokens > 0) for c in first] == [(False, True)] * 4
    assert [(c.cached, c.num_tokens) for c in again] == [(True, 0)] * 4
    metrics = critics.metrics()
    assert metrics["responses"] == 4
    assert metrics["critique_tokens"] == sum(c.num_tokens for answer in (first, other, third) for c in answer)


def test_results_do_not_depend_on_what_is_kept_nor_on_order() -> None:
    many = [A, B, A, C, B, A, C]
    answers = []
    for size, order in ((8, range(7)), (1, range(7)), (8, range(6, -1, -1))):
        found = asyncio.run(judge_in_turn(service(SeededCritic(num_steps=1), cache=size), [many[i] for i in order]))
        answers.append({i: unmarked(answer) for i, answer in zip(order, found, strict=True)})
    assert answers[0] == answers[1] == answers[2]
    other = asyncio.run(judge_in_turn(service(SeededCritic(num_steps=1), cache_seed=1), many))
    assert unmarked(other[0]) != answers[0][0]


def test_without_a_cache_seeds_are_those_of_the_caller_and_everything_is_asked() -> None:
    engine = SeededCritic(num_steps=1)

    async def together() -> None:
        critics = service(engine, cache=0)
        await asyncio.gather(*(judge(critics, A, seed) for seed in (5, 9)))

    asyncio.run(together())
    assert engine.asked == [(5, 4), (9, 4)]


def test_equal_responses_in_flight_are_judged_once() -> None:
    engine = SeededCritic(num_steps=1, turns=5)

    async def together() -> list[tuple[Critique, ...]]:
        critics = service(engine)
        return await asyncio.gather(*(judge(critics, asked) for asked in (A, A, B, A)))

    answers = asyncio.run(together())
    assert len(engine.asked) == 2
    assert unmarked(answers[0]) == unmarked(answers[1]) == unmarked(answers[3])
    assert sum(answer[0].cached for answer in answers) == 2


def test_one_that_is_cancelled_leaves_the_others_their_turn() -> None:
    engine = SeededCritic(num_steps=1, turns=5)

    async def scene() -> tuple[Critique, ...]:
        critics = service(engine)
        first, second = (asyncio.create_task(judge(critics, A)) for _ in range(2))
        for _ in range(3):
            await asyncio.sleep(0)
        first.cancel()
        answer = await second
        assert first.cancelled()
        return answer

    assert [critique.cached for critique in asyncio.run(scene())] == [False] * 4
    assert len(engine.asked) == 2


class FailsFirst(SeededCritic):
    """Its first answer is lost."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        replies = await super().complete(messages, sampling, n=n, seed=seed)
        if len(self.asked) == 1:
            raise ConnectionError("gone")
        return replies


def test_what_failed_is_not_kept() -> None:
    engine = FailsFirst(num_steps=1)
    first, second, third = asyncio.run(judge_in_turn(service(engine, attempts=1), [A, A, A]))
    assert {critique.outcome for critique in first} == {"engine_error"}
    assert not second[0].cached and third[0].cached


def test_where_one_of_two_critics_failed_it_is_asked_again() -> None:
    """Even where its critiques could not have changed the verdict."""

    settings = asked_with(cache=8, attempts=1)
    engine = SeededCritic(num_steps=1, flag_share=0.0, unreadable_share=0.0)
    critics = Critics([engine], settings, others=[Voter(engines=[FailsFirst("b", num_steps=1)])])
    first, second, third = asyncio.run(judge_in_turn(critics, [A, A, A]))
    assert [critique.outcome for critique in first] == ["ok", "engine_error"] * 2
    assert not second[0].cached and third[0].cached


def test_what_nobody_was_there_to_be_asked_for_is_not_kept() -> None:
    """The second critic is down when the response comes for the first time."""

    class Wakes(SeededCritic):
        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
            replies = await super().complete(messages, sampling, n=n, seed=seed)
            if asyncio.get_running_loop().time() < 100:
                raise ConnectionError("asleep")
            return replies

    async def scene() -> list[tuple[Critique, ...]]:
        given = {"on_outage": "outcome_only", "outage_s": 5.0, "break_after": 1, "break_pause_s": 20.0, "vote": "union"}
        settings = asked_with(critiques=4, cache=8, **given)
        engine, sleeper = SeededCritic("a", num_steps=1, flag_share=0.0), Wakes("b", num_steps=1)
        critics = Critics([engine], settings, others=[Voter(engines=[sleeper])])
        answers = []
        for _ in range(3):
            answers.append(await judge(critics, A))
            await asyncio.sleep(100)
        return answers

    first, second, third = play(scene())
    assert [critique.outcome == "cancelled" for critique in first] == [False, True, False, True]
    assert [critique.seed is None for critique in first] == [False, True, False, True]
    assert not any(critique.outcome == "cancelled" or critique.cached for critique in second)
    assert unmarked(third) == unmarked(second) and all(critique.cached for critique in third)


def test_an_unreadable_one_that_is_found_again_fails_once() -> None:
    """It is the same reply: that it comes back a hundred times says nothing new of the critic."""
    engine = SeededCritic(num_steps=1, unreadable_share=1.0)
    critics = service(engine, critiques=1)
    answers = asyncio.run(judge_in_turn(critics, [A] * 20))
    assert {critique.outcome for answer in answers for critique in answer} == {"unreadable"}


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_goes_with_adaptive_voting(adaptive: bool) -> None:
    engine = SeededCritic(num_steps=1, flag_share=0.0, unreadable_share=0.0)
    critics = service(engine, adaptive=adaptive, full_share=0.0)
    first, again = asyncio.run(judge_in_turn(critics, [A, A]))
    assert unmarked(first) == unmarked(again) and len(engine.asked) == 1
    assert sum(critique.outcome == "not_asked" for critique in again) == 2 * adaptive


def test_the_least_recently_used_goes_first() -> None:
    cache = CritiqueCache(2)
    kept = (Critique(text="", outcome="ok"),)
    cache.keep("a", kept)
    cache.keep("b", kept)
    assert cache.find("a")
    cache.keep("c", kept)
    assert [cache.find(key) is not None for key in "abc"] == [True, False, True]
