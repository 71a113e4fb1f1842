"""When no critique that is still missing could change a verdict: against brute force, and against full voting."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.credit.vote import Vote, agreement, sealed, useful_round, vote
from capo_ray.types import Critique

VOTES: list[Vote] = ["intersection", "majority", "strict_majority", "union", "average"]
STEPS = 2
INVALID = Critique(text="", outcome="unreadable")
ANY = [
    INVALID,
    *(
        Critique(text="", outcome="ok", wrong_steps=tuple(s for s in range(STEPS) if flags[s]))
        for flags in product((False, True), repeat=STEPS)
    ),
]
"""Every critique that a response of two steps can get."""


def ok(*wrong: int) -> Critique:
    return Critique(text="", outcome="ok", wrong_steps=wrong)


def verdict(critiques: Sequence[Critique], num_steps: int, how: Vote, needed: int) -> tuple[float, ...] | None:
    """What full voting decides: each step's weight, or None for unjudged."""
    made = vote(critiques, num_steps, how)
    return made.weights if made.num_valid >= needed else None


@pytest.mark.parametrize("needed", [1, 2, 3])
@pytest.mark.parametrize("how", VOTES)
def test_sealed_is_what_brute_force_over_all_completions_finds(how: Vote, needed: int) -> None:
    """Every way in which up to four critiques can come, asked after each number of them."""
    for total in range(1, 5):
        for asked in range(total + 1):
            for so_far in product(ANY, repeat=asked):
                ends = {verdict((*so_far, *rest), STEPS, how, needed) for rest in product(ANY, repeat=total - asked)}
                said = sealed(so_far, total - asked, STEPS, how, min_valid_critiques=needed)
                assert said is (len(ends) == 1), (so_far, total - asked, ends)


@st.composite
def _critiques(draw: st.DrawFn) -> tuple[list[Critique], int]:
    num_steps = draw(st.integers(1, 7))
    valid = st.sets(st.integers(0, num_steps - 1)).map(lambda wrong: ok(*sorted(wrong)))
    return draw(st.lists(st.one_of(valid, valid, st.just(INVALID)), min_size=1, max_size=9)), num_steps


@given(_critiques(), st.sampled_from(VOTES), st.integers(1, 3))
def test_stopping_when_sealed_gives_the_verdict_of_full_voting(
    case: tuple[list[Critique], int], how: Vote, needed: int
) -> None:
    critiques, num_steps = case
    full = verdict(critiques, num_steps, how, needed)
    for asked in range(len(critiques) + 1):
        if sealed(critiques[:asked], len(critiques) - asked, num_steps, how, min_valid_critiques=needed):
            assert verdict(critiques[:asked], num_steps, how, needed) == full


@pytest.mark.parametrize(
    ("how", "so_far", "left", "is_sealed"),
    [
        ("intersection", [ok(0), ok(1)], 2, True),  # nothing is flagged by both
        ("intersection", [ok(0), ok(0, 1)], 1, False),
        ("intersection", [ok(), INVALID], 2, True),
        ("majority", [ok(), ok()], 2, False),  # 2 of 4 is at least half
        ("majority", [ok(), ok(), ok()], 1, True),
        ("majority", [ok(0), ok(0)], 2, False),  # step 0 is sealed, step 1 is not
        ("majority", [ok(0, 1), ok(0, 1)], 2, True),
        ("strict_majority", [ok(), ok()], 2, True),
        ("strict_majority", [ok(0, 1), ok(0, 1)], 2, False),
        ("union", [ok(0)], 1, False),
        ("union", [ok(0), ok(1)], 9, True),
        ("average", [ok(), ok(), ok()], 1, False),
        ("average", [ok(0)], 0, True),
        ("greedy", [], 1, False),
        ("greedy", [ok(0)], 0, True),
        ("intersection", [INVALID, INVALID], 1, False),
    ],
)
def test_rules_by_hand(how: Vote, so_far: list[Critique], left: int, is_sealed: bool) -> None:
    assert sealed(so_far, left, 2, how) is is_sealed


def test_a_response_that_may_still_end_unjudged_is_not_sealed() -> None:
    assert not sealed([ok()], 1, 2, "intersection", min_valid_critiques=2)
    assert sealed([ok(), ok()], 1, 2, "intersection", min_valid_critiques=2)
    assert sealed([ok(), INVALID], 0, 2, "intersection", min_valid_critiques=2)  # unjudged, and nothing can help
    assert sealed([INVALID, INVALID], 1, 2, "intersection", min_valid_critiques=2)


@pytest.mark.parametrize(
    ("how", "at_least", "total", "asked"),
    [
        ("intersection", 2, 4, 2),
        ("intersection", 1, 4, 1),
        ("strict_majority", 1, 4, 2),
        ("majority", 2, 4, 3),
        ("majority", 2, 8, 5),
        ("union", 2, 4, 4),
        ("average", 2, 4, 4),
        ("greedy", 2, 1, 1),
        ("intersection", 2, 1, 1),
    ],
)
def test_the_first_round_is_one_that_can_decide(how: Vote, at_least: int, total: int, asked: int) -> None:
    assert useful_round(at_least, total, how) == asked


def test_agreement_counts_pairs_per_step() -> None:
    assert agreement(vote([ok(0), ok(0), ok(1)], 3, "union")) == (1 + 1 + 3, 9)  # 2:1, 1:2, 0:3
    assert agreement(vote([ok(0), INVALID], 2, "union")) == (0, 0)  # one alone agrees with nobody
