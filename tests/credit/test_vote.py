"""Votes, token rewards and advantages: the golden values of docs/algorithm.md sections 4 to 6, and their properties."""

import random
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.credit.advantage import ALGORITHMS, Advantage
from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.vote import Vote, vote
from capo_ray.types import Answer, Critique, Rollout, Step

VOTES: list[Vote] = ["intersection", "majority", "strict_majority", "union", "average", "greedy"]


def ok(*wrong: int) -> Critique:
    return Critique(text="", outcome="ok", wrong_steps=wrong)


UNREADABLE = Critique(text="", outcome="unreadable")


@pytest.mark.parametrize(
    ("how", "wrong"),
    [("intersection", [3]), ("strict_majority", [1, 3]), ("majority", [1, 2, 3]), ("union", [1, 2, 3])],
)
def test_golden_votes(how: Vote, wrong: list[int]) -> None:
    verdict = vote([ok(1, 3), ok(1, 2, 3), ok(1, 3), ok(2, 3)], 5, how)
    assert verdict.counts == (0, 3, 2, 4, 0)
    assert verdict.weights == tuple(float(step in wrong) for step in range(5))


def test_golden_average_and_greedy() -> None:
    verdict = vote([ok(1, 3), ok(1, 2, 3), ok(1, 3), ok(2, 3)], 5, "average")
    assert verdict.weights == (0, 0.75, 0.5, 1, 0) and verdict.wrong_steps == (1, 2, 3)
    assert vote([ok(1)], 3, "greedy").wrong_steps == (1,)
    with pytest.raises(ValueError, match="greedy vote takes one critique, got 2"):
        vote([ok(1), ok(1)], 3, "greedy")


@pytest.mark.parametrize("how", VOTES[:5])
def test_invalid_critiques_do_not_vote(how: Vote) -> None:
    failed = [Critique(text="", outcome=outcome) for outcome in ("unreadable", "truncated", "timeout", "engine_error")]
    others = [Critique(text="", outcome=outcome) for outcome in ("refused", "not_asked", "cancelled")]
    verdict = vote([ok(1), *failed, ok(1, 2), *others], 3, how)
    assert verdict.weights == vote([ok(1), ok(1, 2)], 3, how).weights
    assert (verdict.num_valid, verdict.num_invalid) == (2, 4)
    assert vote(failed, 3, how).wrong_steps == ()


@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=6), st.sampled_from(VOTES[:5]), st.randoms())
def test_votes_do_not_depend_on_order(lists: list[set[int]], how: Vote, rng: random.Random) -> None:
    critiques = [ok(*sorted(wrong)) for wrong in lists]
    shuffled = rng.sample(critiques, len(critiques))
    assert vote(critiques, 6, how) == vote(shuffled, 6, how)


@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=6))
def test_votes_are_nested(lists: list[set[int]]) -> None:
    sets = [set(vote([ok(*wrong) for wrong in lists], 6, how).wrong_steps) for how in VOTES[:5]]
    intersection, majority, strict, union, average = sets
    assert intersection <= strict <= majority <= union == average
    assert intersection == set.intersection(*lists) and union == set.union(*lists)


def member(
    num_tokens: int, flagged: tuple[int, int], answer: Answer, critiques: tuple[Critique, ...] | None = None
) -> Member:
    """A response of one-letter tokens in two steps, the second of which `flagged` says where it lies."""
    spans = [(0, flagged[0]), flagged]
    return Member(
        rollout=Rollout(
            prompt_id="p",
            index=0,
            text="x" * num_tokens,
            finish="stop",
            token_ids=(1,) * num_tokens,
            logprobs=(0.0,) * num_tokens,
            char_ends=tuple(range(1, num_tokens + 1)),
            versions=(0,),
        ),
        steps=tuple(Step(text="", chars=span, tokens=span) for span in spans),
        critiques=(ok(1),) if critiques is None else critiques,
        answer=answer,
    )


def golden(critiques: tuple[Critique, ...] | None = None) -> list[Member]:
    return [member(4, (2, 4), "correct", critiques), member(6, (3, 6), "wrong")]


def rounded(rows: object, digits: int) -> list[list[float]]:
    return [[round(value, digits) for value in row] for row in rows]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("penalty", "digits", "first", "second"),
    [
        (1, 4, [1.5455, 0.6364], [-0.2727, -1.1818]),
        (2, 3, [1.571, 0.143], [0.143, -1.286]),
        (5, 3, [1.378, -0.484], [0.633, -1.229]),
    ],
)
def test_golden_advantages(penalty: float, digits: int, first: list[float], second: list[float]) -> None:
    score = score_group(golden(), Scheme(process_weight=penalty))
    assert [m.token_rewards for m in score.members] == [
        (2, 2, 2 - penalty, 2 - penalty),
        (0, 0, 0, -penalty, -penalty, -penalty),
    ]
    assert rounded(score.advantages, digits) == [
        [first[0], first[0], first[1], first[1]],
        [second[0]] * 3 + [second[1]] * 3,
    ]


@pytest.mark.parametrize(("advantage", "first", "second"), [("grpo", 1, -1), ("dr_grpo", 1, -1), ("rloo", 2, -2)])
def test_golden_baselines(advantage: Advantage, first: float, second: float) -> None:
    score = score_group(golden(), Scheme(advantage=advantage))
    assert [m.token_rewards for m in score.members] == [(2.0,) * 4, (0.0,) * 6]
    assert rounded(score.advantages, 4) == [[first] * 4, [second] * 6]


def test_average_pays_in_shares() -> None:
    members = [member(4, (2, 4), "correct", (ok(1), ok(), ok(), ok(1)))]
    assert score_group(members, Scheme(vote="average")).members[0].token_rewards == (2, 2, 1.5, 1.5)


def test_tokens_of_no_step_never_pay_and_count_all_the_same() -> None:
    """The end-of-sequence token behind the last step."""
    flagged = member(4, (2, 3), "correct")
    score = score_group([flagged], Scheme())
    assert score.members[0].token_rewards == (2, 2, 1, 2)
    assert rounded(score.advantages, 3) == [[0.577, 0.577, -1.732, 0.577]]


REWARDS = st.lists(st.lists(st.sampled_from([2.0, 1.0, 0.0, -1.0, 1.25, 1 / 3]), max_size=9), min_size=1, max_size=8)


@given(REWARDS)
def test_pooled_advantages_are_standardised(rows: list[list[float]]) -> None:
    pooled = [value for row in ALGORITHMS["capo"].normalise(rows, []) for value in row]
    if len({value for row in rows for value in row}) < 2:
        assert pooled == [0.0] * len(pooled)
    else:
        assert abs(fsum(pooled) / len(pooled)) < 1e-4
        assert abs(fsum(value**2 for value in pooled) / len(pooled) - 1) < 1e-4


@pytest.mark.parametrize("advantage", list(ALGORITHMS))
@given(rows=REWARDS, rng=st.randoms())
def test_permuting_a_group_permutes_the_result(
    advantage: Advantage, rows: list[list[float]], rng: random.Random
) -> None:
    """To the last bit."""
    outcomes = [rng.choice([0.0, 2.0, 2 / 3]) for _ in rows]
    order = rng.sample(range(len(rows)), len(rows))
    normalise = ALGORITHMS[advantage].normalise
    straight = normalise(rows, outcomes)
    assert normalise([rows[i] for i in order], [outcomes[i] for i in order]) == [straight[i] for i in order]


@pytest.mark.parametrize("advantage", [name for name, made in ALGORITHMS.items() if not made.over_batch])
@pytest.mark.parametrize("value", [0.0, 0.1, 2.0, 1 / 3])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_flat_group_has_advantage_zero(advantage: Advantage, value: float, size: int) -> None:
    rows = [[value] * 5] * size
    assert ALGORITHMS[advantage].normalise(rows, [value] * size) == [(0.0,) * 5] * size


def test_equal_outcomes_teach_when_a_step_is_flagged() -> None:
    members = [member(4, (2, 4), "correct"), member(4, (2, 4), "correct", (ok(),))]
    assert score_group(members, Scheme()).has_credit
    assert not score_group(members, Scheme(advantage="grpo")).has_credit
    assert not score_group([members[1]] * 2, Scheme()).has_credit


@pytest.mark.parametrize("critiques", [(UNREADABLE,), (), (UNREADABLE, Critique(text="", outcome="not_asked"))])
def test_unjudged_is_dropped_from_its_group(critiques: tuple[Critique, ...]) -> None:
    """It is not scored as clean: the others get what they would get without it."""
    members = [*golden(), member(5, (2, 5), "correct", critiques)]
    score, without = (score_group(group, Scheme()) for group in (members, golden()))
    assert score.advantages == (*without.advantages, None)
    assert (score.num_unjudged, score.num_unverifiable) == (1, 0)
    assert score.members[2].verdict is None and score.members[2].token_rewards == (2.0,) * 5
    assert score.members[:2] == without.members


def test_unjudged_can_turn_the_whole_group_to_outcomes() -> None:
    score = score_group(golden((UNREADABLE,)), Scheme(unjudged="outcome_only"))
    assert [m.token_rewards for m in score.members] == [(2.0,) * 4, (0.0,) * 6]
    assert score.num_unjudged == 1 and None not in score.advantages
    judged = score_group(golden(), Scheme(unjudged="outcome_only"))
    assert judged == score_group(golden(), Scheme())


def test_min_valid_critiques() -> None:
    members = golden((ok(1), UNREADABLE))
    assert score_group(members, Scheme(min_valid_critiques=1)).num_unjudged == 0
    assert score_group(members, Scheme(min_valid_critiques=2)).num_unjudged == 2


def test_who_needs_no_judge_drops_nobody() -> None:
    score = score_group(golden(()), Scheme(advantage="grpo", min_valid_critiques=2))
    assert score.num_unjudged == 0 and rounded(score.advantages, 4) == [[1] * 4, [-1] * 6]


def test_unverifiable_is_dropped_and_not_wrong() -> None:
    members = [*golden(), member(5, (2, 5), "unverifiable")]
    score = score_group(members, Scheme())
    assert score.advantages == (*score_group(golden(), Scheme()).advantages, None)
    assert (score.num_unjudged, score.num_unverifiable) == (0, 1)


def test_nobody_left() -> None:
    score = score_group([member(3, (1, 3), "unverifiable"), member(3, (1, 3), "wrong", ())], Scheme())
    assert score.advantages == (None, None) and not score.has_credit
