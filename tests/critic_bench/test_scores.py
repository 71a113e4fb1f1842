"""The scores of a critic against values worked out by hand."""

import pytest

from capo_ray.critic_bench.scores import SIZES, VOTES, Judged, Score, advise, score, summary
from capo_ray.types import Critique

INVALID = None
VALUES = ("f1", "found_first_error", "passed_correct", "precision", "recall", "unjudged")


def judged(labels: str, *lists: tuple[int, ...] | None, tokens: int = 10) -> Judged:
    """`labels`: one of "w" wrong, "r" right, "?" per step; `lists`: the steps each critique flags."""
    known = {"w": True, "r": False, "?": None}
    critiques = [
        Critique(text="", outcome="unreadable", num_tokens=tokens)
        if flagged is None
        else Critique(text="", outcome="ok", wrong_steps=flagged, num_tokens=tokens)
        for flagged in lists
    ]
    return Judged([known[label] for label in labels], critiques)


# Four critiques each: two responses with an error, two without.
FIRST = judged("rw??", (1, 3), (1, 2, 3), (1, 3), (2, 3))
LATE = judged("wrw", (0, 2), (2,), (0,), INVALID)
CLEAN = judged("rrr", (), (), (0,), ())
FLAGGED = judged("rr", (1,), (1,), (), ())
ALL = [FIRST, LATE, CLEAN, FLAGGED]


@pytest.mark.parametrize(
    ("vote", "k", "values"),
    [
        # flags: {1,3} {0,2} {} {1}; first errors found 2/2, clean passed 1/2; hits 1+2, false 1
        ("intersection", 1, (2 / 3, 1, 1 / 2, 3 / 4, 1, 0)),
        # {3} {} {} {}: none found, both passed; the hit list is empty, step 3 of FIRST has no label
        ("intersection", 4, (0, 0, 1, None, 0, 0)),
        # {1,2,3} {0,2} {} {1}: LATE has three valid ones, two of them flag 0 and two flag 2
        ("majority", 4, (2 / 3, 1, 1 / 2, 3 / 4, 1, 0)),
        # {1,3} {0,2} {} {}
        ("strict_majority", 4, (1, 1, 1, 1, 1, 0)),
        # {1,2,3} {0,2} {0} {1}
        ("union", 4, (0, 1, 0, 3 / 5, 1, 0)),
        # {1,3} and {1,2,3}: one half each of 2; LATE: 0 at .5, 2 at 1; FLAGGED 1
        ("average", 2, (2 / 3, 1, 1 / 2, 3 / 4, 1, 0)),
        # {1,3} {2} {} {1}: the error of LATE is found too late
        ("intersection", 2, (1 / 2, 1 / 2, 1 / 2, 2 / 3, 2 / 3, 0)),
    ],
)
def test_by_hand(vote: str, k: int, values: tuple[float | None, ...]) -> None:
    got = score(ALL, vote, k)  # type: ignore[arg-type]
    assert (got.vote, got.k) == (vote, k)
    assert [getattr(got, name) for name in VALUES] == [None if v is None else pytest.approx(v) for v in values]


def test_missing_is_missed_by_f1_and_counts_for_no_step() -> None:
    got = score([judged("w", INVALID), judged("w", (0,)), judged("r", INVALID), judged("r", ())], "union", 1)
    assert [getattr(got, name) for name in VALUES] == [1 / 2, 1 / 2, 1 / 2, 1, 1, 1 / 2]


def test_nothing_to_take_the_share_of() -> None:
    got = score([judged("r", ())], "union", 1)
    assert (got.f1, got.found_first_error, got.passed_correct, got.precision, got.recall) == (None, None, 1, None, None)
    with pytest.raises(ValueError, match="no response to score"):
        score([], "union", 1)


def test_average_counts_from_one_half_as_majority_does() -> None:
    for k in SIZES:
        both = [score(ALL, how, k) for how in ("average", "majority")]
        assert [getattr(both[0], name) for name in VALUES] == [getattr(both[1], name) for name in VALUES]


def test_what_adaptive_voting_would_have_spent() -> None:
    """Intersection stops after two that share no flag; a clean first pair is enough, a common flag is not."""
    got = score([judged("rr", (), (1,), (1,), (1,)), judged("rr", (1,), (1,), (), ())], "intersection", 4)
    assert got.adaptive_from_2 == pytest.approx((2 + 4) / 8)
    assert score(ALL, "average", 4).adaptive_from_2 == 1
    assert score([judged("r", (), tokens=0)], "union", 1).adaptive_from_2 is None


def test_summary() -> None:
    got = summary(ALL, seconds=8.0)
    # pairs that agree, per response over its steps: FIRST 6+3+2+6 of 24, LATE 1+3+1 of 9, CLEAN 3+6+6 of 18,
    # FLAGGED 6+2 of 12
    assert got == {
        "responses": 4,
        "responses_with_error": 2,
        "wrong_step_share": pytest.approx(3 / 10),
        "invalid_share": 1 / 16,
        "agreement": pytest.approx((17 + 5 + 15 + 8) / 63),
        "tokens_per_response": 40,
        "responses_per_s": 0.5,
        "outcome_ok": 15,
        "outcome_unreadable": 1,
    }


def a_score(vote: str, k: int, f1: float, precision: float) -> Score:
    return Score(
        vote=vote,  # type: ignore[arg-type]
        k=k,
        f1=f1,
        found_first_error=f1,
        passed_correct=f1,
        precision=precision,
        recall=0.5,
        unjudged=0.0,
        adaptive_from_1=None,
        adaptive_from_2=None,
    )


def test_advice() -> None:
    scores = [a_score("union", 8, 0.70, 0.4), a_score("majority", 4, 0.695, 0.6), a_score("average", 4, 0.695, 0.5)]
    assert advise(scores, 0.1) == (
        "reward.vote=majority with critic.critiques=4: F1 0.6950, within 0.01 of the highest (0.7000, union of 8), at "
        "the fewest critiques; precision 0.6000, recall 0.5000"
    )
    assert advise(scores[:1], 0.1) == (
        "reward.vote=union with critic.critiques=8: F1 0.7000, the highest; precision 0.4000, recall 0.5000"
    )
    assert advise(scores, 0.65).startswith(
        "none: even with reward.vote=majority with critic.critiques=4: F1 0.6950 only"
    )
    assert advise([a_score("union", 1, 0.0, 0.0)], 0.1).startswith("none: no vote finds any first error")
    assert {score(ALL, vote, 4).vote for vote in VOTES} == set(VOTES)
