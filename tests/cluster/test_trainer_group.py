"""Who is sent what: the shares of the trainer ranks, and what they make of them."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from capo_ray.cluster.trainer_group import TrainerGroup, _flatten, _share, _together
from capo_ray.learn.plan import Size, plan
from capo_ray.types import Batch, GroupSummary


def group(name: str, prompt_tokens: int, *responses: int) -> GroupSummary:
    return GroupSummary(
        prompt_id=name, prompt_tokens=prompt_tokens, lengths=tuple(prompt_tokens + length for length in responses),
        oldest_version=0, has_credit=True, tally={}, handle=f"handle of {name}",
    )  # fmt: skip


GROUPS = (group("a", 2, 5, 3), group("b", 1, 4), group("c", 3, 1, 2))


def test_flatten() -> None:
    places, sizes = _flatten(GROUPS)
    assert places == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert sizes == [Size(2, 5, 0), Size(2, 3, 0), Size(1, 4, 1), Size(3, 1, 2), Size(3, 2, 2)]
    assert _flatten(()) == ([], [])


def test_a_rank_is_sent_its_groups_and_no_others() -> None:
    places, _ = _flatten(GROUPS)
    made = ((((0,), (4,)), ((3,), ())), (((1, 2), ()), ((), ())))  # two ranks, two optimizer steps
    assert _share(made, 0, places, (5.0, 1.0), GROUPS) == [
        [[[(0, 0)], [(1, 1)]], [[(1, 0)], []]],  # c is its second group
        [5.0, 1.0],
        "handle of a",
        "handle of c",
    ]
    assert _share(made, 1, places, (5.0, 1.0), GROUPS) == [
        [[[(0, 1), (1, 0)], []], [[], []]],
        [5.0, 1.0],
        "handle of a",
        "handle of b",
    ]


def test_a_rank_without_work_is_sent_nothing_but_the_shape() -> None:
    places, _ = _flatten(GROUPS[1:2])
    made = ((((0,),),), (((),),))
    assert _share(made, 1, places, (1.0,), GROUPS[1:2]) == [[[[]]], [1.0]]


@given(st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=4), max_size=5), st.integers(1, 3), st.integers(1, 4))
def test_every_response_reaches_one_rank(shape: list[list[int]], ranks: int, per_update: int) -> None:
    """By its handle and member, in the order of the plan."""
    groups = [group(str(number), 1, *responses) for number, responses in enumerate(shape)]
    places, sizes = _flatten(groups)
    made = plan(sizes, ranks=ranks, tokens_per_micro_batch=20, responses_per_update=per_update)
    reached = []
    for rank in range(ranks):
        layout, _, *handles = _share(made, rank, places, (), groups)
        sent = [(handles[g], m) for step in layout for micro_batch in step for g, m in micro_batch]
        assert {handle for handle, _ in sent} == set(handles)
        planned = [places[i] for step in made[rank] for indices in step for i in indices]
        assert sent == [(groups[g].handle, m) for g, m in planned]
        reached += sent
    assert sorted(reached) == sorted((groups[g].handle, m) for g, m in places)


class Rank:
    """A rank that answers with what it is given, at once or after an event."""

    def __init__(self, answer: object, after: asyncio.Event | None = None) -> None:
        self._answer, self._after = answer, after
        self.publish_weights = self

    async def remote(self, version: int) -> object:
        if self._after is not None:
            await self._after.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_ranks_are_told_mean_and_spread_of_the_whole_batch() -> None:
    """Two groups of raw rewards, all 2 and all 0: over the batch they are apart by two spreads."""
    told: list[tuple[float, float]] = []

    class Told:
        def __init__(self) -> None:
            self.update = self

        async def remote(self, keep_in: str, scale: tuple[float, float], *rest: object) -> None:
            told.append(scale)

    groups = [
        replace(
            group(name, 2, 5, 5), tally={"trained_tokens": 10.0, "advantage": 10 * r, "advantage_squared": 10 * r * r}
        )
        for name, r in (("right", 2.0), ("wrong", 0.0))
    ]
    for over_batch in (True, False):
        ranks = TrainerGroup(
            [Told(), Told()], tokens_per_micro_batch=9, responses_per_update=None, packing="shared",
            aggregation="token_mean", max_response_tokens=9, over_batch=over_batch,
        )  # fmt: skip
        asyncio.run(ranks.update(Batch(step=0, groups=tuple(groups), spare=(), seconds=0.0), keep_in=Path("k")))
    assert told[:2] == [(1.0, pytest.approx(1.0, abs=1e-5))] * 2
    assert told[2:] == [(0.0, 1.0)] * 2


def group_of(*ranks: Rank) -> TrainerGroup:
    return TrainerGroup(
        ranks,
        tokens_per_micro_batch=9,
        responses_per_update=None,
        packing="shared",
        aggregation="token_mean",
        max_response_tokens=9,
    )


def test_a_broken_connection_is_the_death_of_the_peer() -> None:
    """Rank 0 fails first, and Ray says a moment later that rank 1 is dead."""

    async def use() -> None:
        heard = asyncio.Event()
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(heard.set))
        await group_of(Rank(RuntimeError("Connection closed by peer")), Rank(ActorDiedError(), heard)).publish_weights(
            1
        )

    with pytest.raises(ActorDiedError) as raised:
        asyncio.run(use())
    assert "Connection closed by peer" in str(raised.value.__cause__)


def test_a_rank_that_fails_alone_fails_as_itself() -> None:
    async def use(*ranks: Rank) -> str:
        return await group_of(*ranks).publish_weights(1)

    assert asyncio.run(use(Rank("checksum"), Rank(""))) == "checksum"
    with pytest.raises(FloatingPointError, match="not finite"):
        asyncio.run(use(Rank(""), Rank(FloatingPointError("not finite"))))


def test_a_rank_that_does_not_end_is_named_and_waited_for_no_longer_than_the_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use() -> None:
        ranks = Rank(""), Rank("", asyncio.Event()), Rank("")
        await _together([rank.remote(1) for rank in ranks], "update", word_s=0.01, end_s=0.05, grace_s=0.05)

    with pytest.raises(TimeoutError, match=r"trainer ranks 1 did not end update within 0.05 s"):
        asyncio.run(use())
    assert "waiting for trainer ranks 1 to end update" in caplog.text
