"""How fast an engine is taken to be."""

from __future__ import annotations

import pytest

from capo_ray.critics.pace import Pace


def after(*seconds: float, in_flight: int = 1) -> Pace:
    """After answers of 100 tokens that took so long."""
    made = Pace()
    for took in seconds:
        made.learn(took, 100, in_flight)
    return made


def test_nothing_is_expected_of_an_engine_that_never_answered() -> None:
    assert Pace().expected_s(100, 1) is None


def test_what_is_expected_grows_with_tokens_and_with_the_crowd() -> None:
    made = after(2.0, in_flight=4)
    assert made.expected_s(300, 4) == pytest.approx(6)
    assert made.expected_s(300, 8) == pytest.approx(12)
    assert made.expected_s(300, 1) == pytest.approx(6)  # fewer are no promise


def test_one_quick_answer_is_no_pace() -> None:
    """The next request is given four times what is expected: by the last answer alone it would be given up."""
    made = after(*[2.0] * 10, 0.1)
    assert 4 * (made.expected_s(100, 1) or 0) > 2 * 2.0
    assert after(*[2.0] * 10, *[0.1] * 20).expected_s(100, 1) == pytest.approx(0.1, rel=0.3)


def test_timeouts_side_by_side_double_it_once_and_an_answer_ends_that() -> None:
    made = after(2.0)
    for _ in range(64):
        made.timed_out(50.0, sent_at=10.0)
    assert made.expected_s(100, 1) == pytest.approx(4)
    made.timed_out(90.0, sent_at=60.0)
    assert made.expected_s(100, 1) == pytest.approx(8)
    made.learn(3.0, 100, 1)
    assert made.expected_s(100, 1) == pytest.approx(3)


def test_who_is_clearly_slower_than_the_fastest_gets_its_share() -> None:
    fast, close, slow = after(1.0), after(1.4), after(6.0)
    assert [one.share((fast, close, slow, Pace())) for one in (fast, close, slow)] == [1, 1, pytest.approx(0.25)]
    assert Pace().share([fast]) == after(0.0).share([after(0.0), slow]) == 1
