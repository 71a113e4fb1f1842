"""When a run says that its policy may be gaming the critic."""

from capo_ray.watch import CanaryWatch, HackingWatch


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


def seen(*steps: tuple[int, int, int, int]) -> list[str | None]:
    """Of (canaries, hits, flagged, wrong), with a window of ten canaries and floors of one half."""
    watch = CanaryWatch(min_precision=0.5, min_recall=0.5, window=10)
    names = ("canaries", "canary_hits", "canary_flagged", "canary_wrong")
    return [watch.look({f"critic/{name}": float(n) for name, n in zip(names, step, strict=True)}) for step in steps]


def test_a_critic_below_its_floor_is_said_once_per_window() -> None:
    blind = (5, 1, 1, 5)
    said = seen(*[blind] * 5)
    assert [text is not None for text in said] == [False, True, False, True, False]
    assert said[1] == (
        "the critic is below its floor on the last 10 canaries: recall 0.20 (critic.canaries.min_recall 0.5). Look at "
        "what it says in samples/ and critiques/, and compare it with python -m capo_ray.critic_bench"
    )
    both = seen((10, 1, 5, 5))[0]
    assert both is not None and "precision 0.20 (critic.canaries.min_precision 0.5) and recall 0.20" in both


def test_only_the_last_canaries_count() -> None:
    good, bad = (5, 5, 5, 5), (5, 1, 1, 5)
    assert [text is not None for text in seen(*[good] * 4, bad, bad)] == [False] * 5 + [True]
    assert [text is not None for text in seen(bad, *[good] * 4)] == [False] * 5


def test_nothing_is_said_of_nothing() -> None:
    assert seen((10, 0, 0, 0)) == [None]
    assert CanaryWatch(min_precision=1, min_recall=1, window=1).look({"outcome/accuracy": 0.5}) is None
