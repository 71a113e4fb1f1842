"""Plans: every promise of theirs for any sizes, and some written out."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.learn.packing import Packing
from capo_ray.learn.plan import Size, assert_plan, plan, row_tokens, select

PACKINGS: tuple[Packing, ...] = get_args(Packing)
GROUPS = st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(1, 30), min_size=1, max_size=8)), max_size=12)
"""(prompt, responses), in tokens."""


def sizes(*groups: tuple[int, list[int]]) -> list[Size]:
    return [Size(prompt, response, number) for number, (prompt, group) in enumerate(groups) for response in group]


@pytest.mark.parametrize("packing", PACKINGS)
@given(
    groups=GROUPS,
    ranks=st.integers(1, 5),
    budget=st.integers(50, 200),
    per_update=st.one_of(st.none(), st.integers(1, 20)),
)
def test_every_plan_keeps_its_promises(
    packing: Packing, groups: list[tuple[int, list[int]]], ranks: int, budget: int, per_update: int | None
) -> None:
    given = sizes(*groups)
    made = plan(given, ranks=ranks, tokens_per_micro_batch=budget, responses_per_update=per_update, packing=packing)
    assert len(made) == ranks
    assert_plan(made, given, tokens_per_micro_batch=budget, responses_per_update=per_update, packing=packing)


def test_a_plan_written_out() -> None:
    lengths = sizes(*((1, [length - 1]) for length in (5, 9, 3, 4, 8, 2, 7)))
    made = plan(lengths, ranks=2, tokens_per_micro_batch=10, responses_per_update=5)
    assert made == (
        (((1,), (3, 2)), ((6,),)),
        (((4,), (0,)), ((5,),)),
    )


def test_responses_to_one_prompt_stay_together_where_ranks_are_even() -> None:
    given = sizes((100, [10, 12, 11, 9]), (100, [10, 10, 10, 12]))
    assert plan(given, ranks=2, tokens_per_micro_batch=150, packing="shared") == (
        (((1, 2, 0, 3),),),
        (((7, 4, 5, 6),),),
    )
    assert (
        row_tokens(given, "padded") == 896 and row_tokens(given, "packed") == 884 and row_tokens(given, "shared") == 284
    )


def test_a_group_that_no_rank_could_match_is_spread() -> None:
    made = plan(sizes((5, [100] * 4)), ranks=2, tokens_per_micro_batch=1000, packing="shared")
    assert [len(indices) for share in made for step in share for indices in step] == [2, 2]


def test_a_packed_micro_batch_is_filled_by_what_there_is_room_for() -> None:
    given = sizes((1, [59]), (1, [49]), (1, [39]), (1, [29]), (1, [9]))
    assert plan(given, ranks=1, tokens_per_micro_batch=100, packing="packed") == ((((0, 2), (1, 3, 4)),),)


@pytest.mark.parametrize("packing", PACKINGS)
def test_ranks_without_work_get_empty_micro_batches(packing: Packing) -> None:
    given = sizes((0, [4]), (0, [4]), (0, [4]))
    assert plan(given, ranks=2, tokens_per_micro_batch=4, packing=packing) == ((((0,), (2,)),), (((1,), ()),))
    assert plan(given[:1], ranks=3, tokens_per_micro_batch=4, packing=packing) == ((((0,),),), (((),),), (((),),))
    assert plan([], ranks=2, tokens_per_micro_batch=4, packing=packing) == ((), ())


def test_a_sequence_over_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 11 tokens, more than the 10 of tokens_per_micro_batch"):
        plan(sizes((1, [2, 10])), ranks=1, tokens_per_micro_batch=10)


def test_select_has_the_shape_of_the_share() -> None:
    assert select("abc", (((2,), ()), ((0, 1),))) == ((("c",), ()), (("a", "b"),))
