"""When a run says that its policy may be gaming the critic."""

from capo_ray.watch import HackingWatch


def watched(steps: list[tuple[float, float, float]]) -> list[str | None]:
    """Of (tokens, steps per response, accuracy), with a window of two steps."""
    watch = HackingWatch(window=2)
    return [
        watch.look({"response/mean_tokens": t, "response/mean_steps": s, "outcome/accuracy": a}) for t, s, a in steps
    ]


def test_longer_and_less_accurate_is_said_once_per_window() -> None:
    said = watched([(100, 4, 0.5), (100, 4, 0.5), *[(130, 4, 0.4)] * 4])
    assert [text is not None for text in said] == [False, False, False, True, False, True]
    assert said[3] == (
        "the policy may be gaming the critic: tokens per response from 100.0 to 130.0, while right answers went from "
        "50.0% to 40.0% (means over 2 steps). Look at samples/, and try a lower reward.process_weight or another vote"
    )


def test_more_steps_is_a_sign_too() -> None:
    said = watched([(100, 4, 0.5), (100, 4, 0.5), (100, 5, 0.4), (100, 5, 0.4)])
    assert said[3] is not None and "steps per response from 4.0 to 5.0" in said[3]


def test_one_sign_alone_is_none() -> None:
    assert watched([(100, 4, 0.5), (100, 4, 0.5), *[(130, 5, 0.5)] * 4]) == [None] * 6
    assert watched([(100, 4, 0.5), (100, 4, 0.5), *[(100, 4, 0.3)] * 4]) == [None] * 6


def test_metrics_without_accuracy_are_passed_over() -> None:
    assert HackingWatch(window=1).look({"response/mean_tokens": 3.0}) is None
