"""What is counted of a group, by hand, and the metrics made of it."""

import pytest
from responses import response

from capo_ray.credit.group import GroupScore, Member, Scheme, score_group
from capo_ray.credit.steps import steps_of
from capo_ray.records.tally import Truth, add, count_group, count_response, rates
from capo_ray.types import Answer, Critique, CritiqueOutcome, Finish


def ok(*wrong: int) -> Critique:
    return Critique(text="", outcome="ok", wrong_steps=wrong, num_tokens=10)


def failed(outcome: CritiqueOutcome, num_tokens: int = 0) -> Critique:
    return Critique(text="", outcome=outcome, num_tokens=num_tokens)


def member(answer: Answer, critiques: tuple[Critique, ...], *pieces: str, finish: Finish = "stop") -> Member:
    rollout = response(*pieces, finish=finish)
    return Member(rollout=rollout, steps=steps_of(rollout.text, rollout.char_ends), critiques=critiques, answer=answer)


MEMBERS = (
    member("correct", (ok(1), ok(1, 2)), "one\n\n", "two\n\n", "three"),  # the vote flags step 1, a token
    member("wrong", (ok(), failed("unreadable", 30)), "one\n\n", "two, and t", finish="length"),
    member("unverifiable", (ok(0), failed("refused")), "one"),
    member("wrong", (failed("timeout"), failed("not_asked")), "one"),  # unjudged
)
TRUTHS = (
    Truth(answer_right=True, steps_right=(True, False, False)),
    Truth(answer_right=False, steps_right=(True, True)),
    None,
    Truth(answer_right=False, steps_right=(False,)),
)
COUNTS = {
    "responses": 4,
    "verified": 3,
    "unverifiable": 1,
    "correct": 1,
    "cut_off": 1,
    "response_tokens": 4 + 2 + 2 + 2,
    "token_reward": (2 + 1 + 2 + 2) + 0 + (-1 + 0) + 0,
    "steps": 3 + 2 + 1 + 1,
    "judged_steps": 3 + 2 + 1,
    "judged_tokens": 4 + 2 + 2,
    "flagged_steps": 2,
    "flagged_tokens": 2,
    "critiques": 8,
    "answered_steps": 3 + 2 + 1,
    "finished_critiques": 6,
    "valid_critiques": 4,
    "written_critiques": 5,
    "critiques_from_cache": 0,
    "critique_tokens": 70,
    "judging_tokens": 70,
    "wrong": 2,
    "right_tokens": 4,
    "wrong_tokens": 2 + 2,
    "right_judged": 1,
    "wrong_judged": 1,
    "right_flagged_steps": 1,
    "wrong_flagged_steps": 0,
    "judged_rewards": 7 / 4 + 0,
    "judged_rewarded": 2,
    "unjudged_rewards": 0,
    "unjudged_rewarded": 1,
    "tokens_not_spent": 0,
    "tokens_of_all_critiques": 70,
    "critique_ok": 4,
    "critique_unreadable": 1,
    "critique_refused": 1,
    "critique_timeout": 1,
    "critique_not_asked": 1,
    "fresh_critiques": 6,
    "failed_unreadable": 1,
    "failed_timeout": 1,
    "truth_responses": 3,
    "truth_steps": 6,
    "steps_right": 3,
    "process_right": 1,
    "both_right": 0,
    "only_answer_right": 1,
    "only_process_right": 1,
    "neither_right": 1,
    "truth_flagged": 1,
    "truth_wrong": 2,
    "true_flags": 1,
    "groups": 1,
    "groups_with_credit": 1,
    "groups_dropped": 0,
    "trained_responses": 2,
    "unjudged": 1,
}


@pytest.fixture(scope="module")
def score() -> GroupScore:
    return score_group(MEMBERS, Scheme(vote="intersection", outcome_weight=2, process_weight=1))


def test_counts_of_a_group(score: GroupScore) -> None:
    counts = count_group(score, TRUTHS)
    tokens = [value for row in score.advantages if row for value in row]
    spread = {"trained_tokens": len(tokens), "advantage": sum(tokens), "advantage_squared": sum(v * v for v in tokens)}
    assert counts == pytest.approx(COUNTS | spread, abs=1e-9)
    assert all(type(value) is float for value in counts.values())


def test_rates_of_a_group() -> None:
    expected = {
        "outcome/accuracy": 1 / 3,
        "outcome/unverifiable_share": 1 / 4,
        "reward/mean_token_reward": 6 / 10,
        "response/mean_tokens": 10 / 4,
        "reward/judged": 7 / 8,
        "reward/unjudged": 0,
        "response/mean_tokens_right": 4,
        "response/mean_tokens_wrong": 2,
        "response/mean_steps": 7 / 4,
        "response/cut_off_share": 1 / 4,
        "critic/valid_share": 4 / 6,
        "critic/unjudged_share": 1 / 4,
        "critic/flagged_step_share": 2 / 6,
        "critic/flagged_token_share": 2 / 8,
        "critic/flagged_steps_right": 1,
        "critic/flagged_steps_wrong": 0,
        "critic/mean_tokens": 70 / 5,
        "critic/saved_token_share": 0,
        "critic/from_cache_share": 0,
        "critic/precision": 1,
        "critic/recall": 1 / 2,
        "critic/unreadable_share": 1 / 8,
        "critic/refused_share": 1 / 8,
        "critic/timeout_share": 1 / 8,
        "critic/not_asked_share": 1 / 8,
        "group/credit_share": 1,
        "group/dropped_share": 0,
        "truth/step_accuracy": 3 / 6,
        "truth/process_accuracy": 1 / 3,
        "truth/right_answer_and_process": 0,
        "truth/right_answer_wrong_process": 1 / 3,
        "truth/wrong_answer_right_process": 1 / 3,
        "truth/wrong_answer_wrong_process": 1 / 3,
    }
    assert rates(COUNTS) == pytest.approx(expected)


def test_counts_add_up_and_rates_weigh_by_them(score: GroupScore) -> None:
    right = score_group([member("correct", (ok(),), "one")] * 4, Scheme())
    both = add([count_group(score, TRUTHS), count_group(right, [None] * 4)])
    assert both["responses"] == 8 and both["groups"] == 2
    assert rates(both)["outcome/accuracy"] == 5 / 7
    assert rates(both)["group/credit_share"] == 1 / 2  # all of them right: nothing to tell apart


def test_a_dropped_group_has_no_credit() -> None:
    """One member alone has flagged tokens to tell from others, but nothing is trained on it."""
    alone = score_group([MEMBERS[0], MEMBERS[3]], Scheme(process_weight=1))
    counts = count_group(alone, (None, None))
    assert not alone.has_credit
    assert (counts["groups_dropped"], counts["groups_with_credit"], counts["trained_responses"]) == (1, 0, 1)


def test_no_metric_where_nothing_was_counted(score: GroupScore) -> None:
    assert rates({}) == {} and add([]) == {}
    unknown = rates(count_group(score, (None,) * 4))
    assert not [name for name in unknown if name.startswith("truth/")] and "critic/precision" not in unknown
    unasked = score_group([member("correct", (), "one"), member("wrong", (), "two")], Scheme(advantage="grpo"))
    named = rates(count_group(unasked, (None, None)))
    assert {name for name in named if name.startswith("critic/")} == {"critic/unjudged_share"}


def test_an_evaluation_counts_responses_alone(score: GroupScore) -> None:
    evaluated = rates(add(map(count_response, score.members, TRUTHS)))
    assert evaluated["outcome/accuracy"] == 1 / 3 and evaluated["truth/step_accuracy"] == 3 / 6
    assert not [name for name in evaluated if name.startswith("group/") or name == "critic/unjudged_share"]


def test_flags_are_not_compared_with_a_truth_about_other_steps(score: GroupScore) -> None:
    counts = count_response(score.members[0], Truth(answer_right=True, steps_right=(True,)))
    assert counts["truth_steps"] == 1 and "truth_flagged" not in counts


def test_an_average_flags_from_half_on_as_it_does_for_canaries() -> None:
    truth = Truth(answer_right=False, steps_right=(False, True, False))
    pieces = ("one\n\n", "two\n\n", "three")
    judged = member("wrong", (ok(0, 1), ok(0), ok(0), ok(0, 2), ok(2), ok(2)), *pieces)  # weights 2/3, 1/6, 1/2
    counts = count_response(score_group([judged], Scheme(vote="average")).members[0], truth)
    assert (counts["truth_flagged"], counts["true_flags"], counts["truth_wrong"]) == (2, 2, 2)


def test_a_response_without_steps_has_no_right_process(score: GroupScore) -> None:
    truth = Truth(answer_right=False, steps_right=())
    assert not truth.process_right
    assert count_response(score.members[3], truth)["neither_right"] == 1


def test_what_was_not_asked_for_is_taken_to_cost_what_was() -> None:
    left = failed("not_asked")
    few = member("wrong", (ok(), failed("unreadable", 30), left, left), "one")
    scored = score_group([few], Scheme()).members[0]
    counts = count_response(scored, None)
    assert (counts["tokens_not_spent"], counts["tokens_of_all_critiques"]) == (40, 80)  # twice the mean of 10 and 30
    assert rates(counts)["critic/saved_token_share"] == 0.5
    away = score_group(
        [member("wrong", (ok(), failed("cancelled"), failed("timeout"), left), "one")], Scheme()
    ).members[0]
    assert count_response(away, None)["tokens_not_spent"] == 10  # what an outage or a timeout took is no saving
    nobody = score_group([member("wrong", (left, left), "one")], Scheme()).members[0]
    assert count_response(nobody, None)["tokens_not_spent"] == 0


def test_what_comes_from_the_cache_is_in_no_mean_of_tokens() -> None:
    kept = Critique(text="", outcome="ok", cached=True)
    counts = count_response(score_group([member("wrong", (ok(), kept), "one")], Scheme()).members[0], None)
    assert rates(counts)["critic/mean_tokens"] == 10
    assert (rates(counts)["critic/from_cache_share"], rates(counts)["critic/valid_share"]) == (1 / 2, 1)
