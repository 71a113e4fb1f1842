"""A group whose responses nobody could judge, because no critic was up, gets outcome rewards alone."""

from responses import response

from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.types import Critique, CritiqueOutcome, Step


def member(index: int, answer: str, *outcomes: CritiqueOutcome) -> Member:
    """A response of one step and two tokens, flagged by every critique that is valid."""
    rollout = response("a", index=index)
    return Member(
        rollout=rollout,
        steps=(Step(text="a", chars=(0, 1), tokens=(0, 1)),),
        critiques=tuple(
            Critique(text="", outcome=outcome, wrong_steps=(0,) if outcome == "ok" else ()) for outcome in outcomes
        ),
        answer="correct" if answer == "correct" else "wrong",
    )


FLAGGED = member(0, "correct", "ok", "ok")
WRONG = member(1, "wrong", "ok", "ok")
UNREADABLE = member(2, "correct", "unreadable", "not_asked")
NOBODY = member(3, "correct", "not_asked", "cancelled")
EARLY = member(4, "correct", "ok", "not_asked")


def test_a_response_that_nobody_was_asked_about_keeps_its_place() -> None:
    score = score_group([FLAGGED, WRONG, UNREADABLE, NOBODY], Scheme(unjudged="drop"))
    assert [scored.token_rewards for scored in score.members] == [(2, 2), (0, 0), (2, 2), (2, 2)]
    assert all(row is not None for row in score.advantages)
    assert score.num_unjudged == 2


def test_one_whose_critiques_failed_is_dropped_as_ever() -> None:
    score = score_group([FLAGGED, WRONG, UNREADABLE], Scheme(unjudged="drop"))
    assert [scored.token_rewards for scored in score.members][:2] == [(1, 2), (-1, 0)]
    assert [row is None for row in score.advantages] == [False, False, True]


def test_one_that_is_judged_by_those_who_were_asked_is_judged() -> None:
    score = score_group([FLAGGED, WRONG, EARLY], Scheme(unjudged="drop"))
    assert score.members[2].token_rewards == (1, 2)
    assert score.num_unjudged == 0
