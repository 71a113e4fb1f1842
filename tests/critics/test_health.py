"""The states of an engine, one news after the other."""

from __future__ import annotations

import pytest

from capo_ray.critics.health import Health


def health(*news: str, break_after: int = 3) -> Health:
    """After `news`, one a second from second 1 on; what begins with "probe" is about the probe."""
    made = Health(break_after=break_after, break_pause_s=10)
    for now, word in enumerate(news, start=1):
        probe, what = word.startswith("probe "), word.removeprefix("probe ")
        if what == "sent":
            assert made.admits(now)
            assert made.sent() == (made.state == "probing")
        elif what == "fails":
            made.failed(now, probe=probe)
        elif what == "busy":
            made.busy(now, 1, probe=probe)
        elif what == "answers":
            made.answered(now, probe=probe)
        elif what == "ends":
            made.given_up(probe=probe)
        else:
            {"is there": made.is_there, "is away": lambda: made.is_away(now)}[what]()  # noqa: B023
    return made


@pytest.mark.parametrize(
    ("news", "state"),
    [
        ([], "up"),
        (["sent"], "up"),
        (["fails", "fails"], "up"),
        (["fails", "fails", "fails"], "broken"),
        (["fails", "fails", "answers", "fails", "fails"], "up"),
        (["fails"] * 3 + ["answers"], "up"),
        (["fails"] * 3 + ["answers", "fails"], "up"),
        (["fails"] * 3 + ["is there", "fails"], "up"),
        (["fails"] * 3 + ["is away"], "broken"),
        (["fails"] * 3 + ["busy"], "resting"),
        (["busy"], "resting"),
        (["busy", "answers"], "resting"),
        (["busy", "fails", "fails"], "resting"),
        (["busy", "fails", "fails", "fails"], "broken"),
        (["busy", "sent"], "probing"),
        (["busy", "sent", "answers"], "probing"),
        (["busy", "sent", "ends"], "probing"),
        (["busy", "sent", "fails"], "probing"),
        (["busy", "sent", "busy"], "probing"),
        (["busy", "sent", "probe ends"], "resting"),
        (["busy", "sent", "probe ends", "sent"], "probing"),
        (["busy", "sent", "probe busy"], "resting"),
        (["busy", "sent", "probe fails"], "broken"),
        (["busy", "sent", "probe fails", "probe ends"], "broken"),
        (["busy", "sent", "probe answers"], "up"),
        (["busy", "sent", "probe answers", "probe ends"], "up"),
        (["busy", "sent", "fails", "fails", "fails", "probe answers"], "up"),
        (["busy", "sent", "fails", "fails", "fails", "probe fails"], "broken"),
    ],
    ids=str,
)
def test_where_news_lead(news: list[str], state: str) -> None:
    assert health(*news).state == state


def test_it_is_left_alone_until_its_time() -> None:
    resting, broken = health("busy"), health("fails", break_after=1)
    assert [resting.admits(now) for now in (1.9, 2.0)] == [False, True]
    assert [resting.pause_s(now) for now in (1.5, 3.0)] == [0.5, 0]
    assert not broken.admits(99) and broken.pause_s(4) == 7
    broken.is_away(20)
    assert broken.pause_s(21) == 9


def test_who_does_not_say_for_how_long_it_is_busy_rests_for_the_pause() -> None:
    made = health()
    made.busy(5, None, probe=False)
    assert made.pause_s(5) == 10


def test_only_one_is_sent_while_it_is_tried() -> None:
    assert not health("busy", "sent").admits(99)


def test_it_tells_once_that_it_breaks() -> None:
    made = health("fails", "fails")
    assert [made.failed(now, probe=False) for now in (3, 4, 5)] == [True, False, False]


def test_since_when_it_is_down() -> None:
    """An answer to what was sent before shows that it lives, and the time begins anew."""
    assert health("busy").down_since == 1
    assert health("busy", "sent", "probe fails", "is away").down_since == 1
    assert health("busy", "sent", "answers").down_since == 3
