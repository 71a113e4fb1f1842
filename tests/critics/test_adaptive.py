"""Adaptive voting: fewer critiques, the same critiques, the same verdicts."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from asked import asked_with
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seeded_critic import SeededCritic

from capo_ray.credit.critique import Reference
from capo_ray.credit.vote import Vote, vote
from capo_ray.critics.service import Critics, Voter
from capo_ray.engines.protocols import Message, PromptTooLong, Replies
from capo_ray.types import Critique, Sampling

STEPS = ["one", "two", "three"]
VOTES: list[Vote] = ["intersection", "majority", "strict_majority", "union", "average"]


def service(*engines: SeededCritic, others: Sequence[Voter] = (), **given: object) -> Critics:
    base: dict[str, object] = {"critiques": 4, "full_share": 0.0}
    return Critics(engines, asked_with(**(base | given)), others=others)


def judge(critics: Critics, seeds: Sequence[int]) -> list[tuple[Critique, ...]]:
    """One response per seed, all at once."""

    async def together() -> list[tuple[Critique, ...]]:
        return await asyncio.gather(
            *(
                critics.judge("1 + 1?", Reference("answer", "2"), STEPS, response_key=f"p/{seed}", seed=seed)
                for seed in seeds
            )
        )

    return asyncio.run(together())


def asked_of(critiques: Sequence[Critique]) -> list[Critique]:
    return [critique for critique in critiques if critique.outcome != "not_asked"]


def verdict(critiques: Sequence[Critique], how: Vote, needed: int) -> tuple[float, ...] | None:
    made = vote(critiques, len(STEPS), how)
    return made.weights if made.num_valid >= needed else None


@dataclass
class Unwell(SeededCritic):
    """All of its answers are lost, or it takes no prompt of this length."""

    lost: bool = False
    refuses: bool = False

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        replies = await super().complete(messages, sampling, n=n, seed=seed)
        if self.refuses:
            raise PromptTooLong("9000 tokens do not fit 8192")
        if self.lost:
            raise ConnectionError("gone")
        return replies


FAULTS = st.sampled_from(["", "", "lost", "refuses"])


@settings(max_examples=80)
@example(how="intersection", k=4, first_round=1, needed=1, seed=0, faults=["lost", ""])
@example(how="intersection", k=7, first_round=3, needed=1, seed=0, faults=["", "", "", "lost", "refuses"])
@given(
    how=st.sampled_from(VOTES),
    k=st.integers(1, 7),
    first_round=st.integers(1, 4),
    needed=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    faults=st.lists(FAULTS, min_size=1, max_size=3),
)
def test_the_verdict_and_each_critique_are_those_of_full_voting(
    how: Vote, k: int, first_round: int, needed: int, seed: int, faults: list[str]
) -> None:
    answers = []
    for adaptive in (False, True):
        engine, *others = (
            Unwell(str(number), flag_share=0.2 + 0.2 * number, lost=fault == "lost", refuses=fault == "refuses")
            for number, fault in enumerate(faults)
        )
        given = {"critiques": max(k, len(faults)), "first_round": first_round, "min_valid_critiques": needed}
        given |= {"attempts": 1, "break_after": 1000}
        voters = [Voter(engines=[other]) for other in others]
        made = service(engine, others=voters, adaptive=adaptive, vote=how, **given)
        answers.append(judge(made, range(seed, seed + 2000, 100)))
    for full, adaptive in zip(*answers, strict=True):
        assert len(adaptive) == len(full)
        asked = asked_of(adaptive)
        assert tuple(asked) == full[: len(asked)]
        assert all(critique.outcome == "not_asked" and critique.seed is None for critique in adaptive[len(asked) :])
        assert verdict(adaptive, how, needed) == verdict(full, how, needed)


@pytest.mark.parametrize(
    ("how", "first_round", "sizes"),
    [
        ("intersection", 2, {2, 4}),
        ("intersection", 1, {1, 2, 4}),
        ("strict_majority", 2, {2, 4}),
        ("majority", 2, {3, 4}),
        ("union", 2, {4}),
        ("average", 2, {4}),
    ],
)
def test_how_many_are_asked_for(how: Vote, first_round: int, sizes: set[int]) -> None:
    """Each round doubles what there is; rounds that could not decide are not made."""
    engine = SeededCritic()
    answers = judge(service(engine, adaptive=True, vote=how, first_round=first_round), range(0, 30_000, 100))
    assert {len(asked_of(critiques)) for critiques in answers} == sizes
    assert sum(n for _, n in engine.asked) == sum(len(asked_of(critiques)) for critiques in answers)
    ends = [0, *sorted(sizes)]
    assert {n for _, n in engine.asked} == {end - start for start, end in pairwise(ends)}


def test_a_share_is_judged_in_full_and_chance_does_not_choose_it() -> None:
    seeds = range(0, 200_000, 100)

    def in_full(order: Sequence[int]) -> set[int]:
        critics = service(SeededCritic(flag_share=0.0, unreadable_share=0.0), adaptive=True, full_share=0.05)
        answers = dict(zip(order, judge(critics, order), strict=True))
        assert critics.metrics()["judged_in_full"] == sum(len(asked_of(answer)) == 4 for answer in answers.values())
        return {seed for seed, answer in answers.items() if len(asked_of(answer)) == 4}

    chosen = in_full(seeds)
    assert chosen == in_full(seeds[::-1])
    everyone = judge(service(SeededCritic(), adaptive=True, full_share=1.0), seeds[:50])
    assert all(len(asked_of(answer)) == 4 for answer in everyone)


def test_the_share_is_as_large_as_was_asked_for() -> None:
    critics = service(SeededCritic(flag_share=0.0), adaptive=True, full_share=0.05)
    judge(critics, range(0, 400_000, 100))
    assert 150 < critics.metrics()["judged_in_full"] < 250  # of 4,000


def test_agreement_is_measured_on_what_is_judged_in_full() -> None:
    engine = SeededCritic(flag_share=0.5)
    critics = service(engine, vote="union", critiques=2)
    answers = judge(critics, range(0, 10_000, 100))
    metrics = critics.metrics()
    both = [a for a in answers if all(critique.outcome == "ok" for critique in a)]
    same = sum(len(STEPS) - len(set(a.wrong_steps) ^ set(b.wrong_steps)) for a, b in both)
    assert (metrics["agreeing_pairs"], metrics["compared_pairs"]) == (same, len(STEPS) * len(both))
    judged = [a for a in answers if any(critique.outcome == "ok" for critique in a)]
    alone = [verdict(a[:1], "union", 1) != verdict(a, "union", 1) for a in judged]
    assert (metrics["first_differs"], metrics["judged_in_full"]) == (sum(alone), len(judged))
    critics = service(SeededCritic(), adaptive=True)
    judge(critics, range(0, 10_000, 100))
    assert critics.metrics()["judged_in_full"] == 0


def test_two_critics_of_one_model_write_different_critiques() -> None:
    first, second = SeededCritic("a", flag_share=0.5), SeededCritic("b", flag_share=0.5)
    (answer,) = judge(service(first, others=[Voter(engines=[second])]), [7])
    assert [critique.critic for critique in answer] == ["a", "b"] * 2
    assert len({critique.text for critique in answer}) > 2
    assert [critique.seed for critique in answer[::2]] == [7, 8] and first.asked == [(7, 2)]
    seeds = [critique.seed for critique in answer[1::2]]
    assert second.asked == [(seeds[0], 2)] and seeds == [seeds[0], seeds[0] + 1]


def test_a_round_without_a_reply_ends_the_asking() -> None:
    class TooLong(SeededCritic):
        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
            await super().complete(messages, sampling, n=n, seed=seed)
            raise PromptTooLong("9000 tokens do not fit 8192")

    engine = TooLong()
    (answer,) = judge(service(engine, adaptive=True), [1])
    assert Counter(critique.outcome for critique in answer) == {"refused": 2, "not_asked": 2}
    assert engine.asked == [(1, 2)]


def test_the_second_round_goes_to_the_engine_of_the_first() -> None:
    """Two responses of one problem: the second one moves the prefix on to b, since a is full; b is done long before."""
    a, b = SeededCritic("a", flag_share=1.0, turns=20), SeededCritic("b", flag_share=1.0)
    answers = judge(service(a, b, adaptive=True, max_sequences=2), [100, 200])
    assert [[critique.critic for critique in answer] for answer in answers] == [["a"] * 4, ["b"] * 4]


def test_what_was_begun_goes_before_what_waits() -> None:
    """One engine with one seat: a response is finished before the last one is begun."""
    engine = SeededCritic(flag_share=1.0)
    judge(service(engine, adaptive=True, max_sequences=2), [100, 200, 300, 400])
    rounds = [seed for seed, _ in engine.asked]
    assert rounds.index(102) < rounds.index(400)
