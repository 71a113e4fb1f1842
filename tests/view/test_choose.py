"""Filters, the steps most often flagged, and a problem over policy versions."""

from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from view_run import write_run

from capo_ray.view.choose import Filter, choose, draws, most_flagged
from capo_ray.view.index import Index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    made = Index(write_run(tmp_path))
    made.refresh(60)
    return made


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {"two0", "two1", "two2", "two3", "evil0", "evil1"}),
        ("answer=wrong", {"two2", "evil1"}),
        ("answer=unverifiable", {"two3"}),
        ("verdict=flagged", {"two1", "evil1"}),
        ("verdict=unjudged", {"two3"}),
        ("verdict=clean&answer=wrong", {"two2"}),
        ("disagree=yes", {"two2"}),
        ("unreadable=yes", {"two1", "two3"}),
        ("truth=missed", {"two2"}),
        ("truth=alarm", set()),
        ("tokens=6-", {"two1", "two2"}),
        ("tokens=-2", {"two3"}),
        ("tokens=5", {"two0"}),
        ("tokens=many", {"two0", "two1", "two2", "two3", "evil0", "evil1"}),
        ("steps=7-9", set()),
        ("problem=evil", {"evil0", "evil1"}),
        ("text=SO 4", {"two1", "two2"}),
        ("text=<script>&answer=correct", {"evil0"}),
        ("page=3&nonsense=1&answer= wrong ", {"two2", "evil1"}),
    ],
)
def test_a_filter(index: Index, query: str, found: set[str]) -> None:
    wanted = Filter.of_query(dict(parse_qsl(query)))
    assert {f"{entry.problem}{entry.index}" for entry in choose(index, wanted)} == found
    assert Filter.of_query(dict(parse_qsl(wanted.query()))) == wanted


def test_one_step_of_training(index: Index) -> None:
    assert {entry.step for entry in choose(index, Filter(steps="1"))} == {1}
    assert len(choose(index, Filter(steps="1-2"))) == 12


def test_the_steps_most_often_flagged(index: Index) -> None:
    """Per step of training `is 5` is written twice, flagged once by the vote and by three critiques."""
    slip, evil = most_flagged(index)
    assert (slip.text, slip.times, slip.flagged, slip.critiques, slip.known, slip.right) == ("is 5", 4, 2, 6, 4, 0)
    assert evil.text.startswith("<script>") and (evil.times, evil.flagged, evil.critiques, evil.known) == (4, 2, 4, 0)


def test_a_problem_over_policy_versions(index: Index) -> None:
    first, second = draws(index.entries, "two")
    assert [(draw.version, draw.prompt_id, len(draw.entries)) for draw in (first, second)] == [
        (0, "two@0", 4), (1, "two@1", 4),
    ]  # fmt: skip
    assert first.share(entry.answer == "correct" for entry in first.entries) == 0.5
    assert draws(index.entries, "nobody") == []


@pytest.mark.parametrize("bounds", ["", "5", "5-", "-5", "5-7", " 5 - 7 "])
def test_a_range_means_something(bounds: str) -> None:
    assert Filter(tokens=bounds, steps=bounds).meaningless() == []


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ("many", "Tokens: 'many' is no range, and hides nothing; write FROM-TO, FROM- or a number."),
        ("-", "Tokens: '-' is no range, and hides nothing; write FROM-TO, FROM- or a number."),
        ("5-x", "Tokens: '5-x' is no range, and hides nothing; write FROM-TO, FROM- or a number."),
        ("7-5", "Tokens: nothing is from 7 to 5."),
    ],
)
def test_a_range_that_means_nothing_is_said(bounds: str, said: str) -> None:
    assert Filter(tokens=bounds).meaningless() == [said]
