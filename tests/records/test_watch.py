"""When a run says that its policy may be gaming the critic."""

from pathlib import Path

import pytest

from capo_ray.records.watch import CanaryGap, CanaryWatch, Diverged, DivergenceWatch, HackingWatch, NonfiniteWatch


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


def compared(**shares: float) -> str | None:
    """What is said after 2 x 25 canaries."""
    watch = CanaryGap()
    step = {f"critic/{name}": share for name, share in shares.items()} | {"critic/canaries": 25.0}
    assert watch.look(step) is None
    return watch.look(step)


def test_canaries_that_are_treated_otherwise_are_told_of() -> None:
    """The shares of a run whose critic was right of canaries and wrong of three of four flags."""
    seen = {"canary_valid_share": 1.0, "canary_flagged_step_share": 0.35, "canary_false_alarm_share": 0.04}
    said = compared(**seen, valid_share=0.68, flagged_step_share=0.56)
    assert said == (
        "critics treat canaries and the run's own responses differently: 100% of the critiques of canaries are valid "
        "and 68% of the run's and 35% of the steps of canaries are flagged and 56% of the run's. What canaries say of "
        "them (critic/canary_precision, critic/canary_recall) does not hold for the run: look at critiques/, and take "
        "canaries that are more like its problems"
    )
    assert compared(**seen, valid_share=0.95, flagged_step_share=0.05) is None  # a policy that has learnt
    assert compared(**seen | {"canary_false_alarm_share": 0.3}, valid_share=1.0, flagged_step_share=0.05) is not None
    assert compared(canary_valid_share=0.5, valid_share=0.7) is not None
    assert compared(canary_valid_share=0.5) is None


def test_a_gap_is_told_of_once_per_window() -> None:
    watch = CanaryGap(window=10)
    step = {"critic/canaries": 5.0, "critic/canary_valid_share": 1.0, "critic/valid_share": 0.1}
    assert [watch.look(step) is not None for _ in range(6)] == [False, True] * 3
    assert watch.look({"critic/valid_share": 0.1}) is None


WELL = {
    "outcome/accuracy": 0.5,
    "response/cut_off_share": 0.1,
    "group/credit_share": 1.0,
    "trainer/grad_norm": 2.0,
    "trainer/ratio_max": 3.0,
}
BROKEN = [
    ({"outcome/accuracy": 0.0}, "no answer is right any more"),
    ({"response/cut_off_share": 1.0}, "every response is cut off at rollout.max_response_tokens"),
    ({"group/credit_share": 0.0}, "no token has an advantage"),
    ({"trainer/grad_norm": 201.0}, "the gradient's norm is 201, 2 is usual"),
    ({"trainer/ratio_max": 2e4}, "a token is 2e+04 times as probable as it was under the old policy"),
]


@pytest.mark.parametrize(("sign", "said"), BROKEN)
def test_a_policy_that_falls_apart_is_said_and_ends_the_run(sign: dict[str, float], said: str) -> None:
    watch = DivergenceWatch(stop_after=12)
    assert [watch.look(WELL) for _ in range(10)] == [None] * 10
    heard = [watch.look(WELL | sign) for _ in range(12)]
    assert [number for number, text in enumerate(heard) if text] == [0, 10]
    assert heard[0] == f"the policy may be falling apart: {said}"
    with pytest.raises(Diverged) as error:
        watch.look(WELL | sign)
    assert str(error.value) == (
        f"the policy has been broken for 13 steps in a row ({said}): more than stop_after_broken_steps 12. Move later "
        "checkpoints away and go on from one before, with a lower trainer.learning_rate"
    )


def test_a_step_that_is_well_begins_the_count_anew() -> None:
    watch = DivergenceWatch(stop_after=2)
    for _ in range(5):
        for metrics in (WELL, WELL | {"outcome/accuracy": 0.0}, WELL | {"outcome/accuracy": 0.0}):
            watch.look(metrics)


def test_answers_that_were_never_right_are_no_sign() -> None:
    watch = DivergenceWatch(stop_after=1)
    assert [watch.look(WELL | {"outcome/accuracy": 0.0}) for _ in range(5)] == [None] * 5


def test_a_run_may_be_let_go_on() -> None:
    watch = DivergenceWatch(stop_after=0)
    assert sum(watch.look(WELL | {"group/credit_share": 0.0}) is not None for _ in range(100)) == 10


def test_gradients_that_are_not_finite_are_said_each_time_and_several_in_a_row_end_the_run(tmp_path: Path) -> None:
    watch = NonfiniteWatch(stop_after=3, run_dir=tmp_path)
    broken = WELL | {"trainer/nonfinite_steps": 2.0}
    heard = [watch.look(metrics) for metrics in (WELL, broken, broken, WELL, broken, broken)]
    assert [text is not None for text in heard] == [False, True, True, False, True, True]
    said = (
        "2 optimizer steps skipped, the gradient was not finite (in {} of at most 3 steps in a row: "
        "trainer.stop_after_nonfinite). Look at trainer/ratio_max, trainer/kl_reference and trainer/grad_norm of the "
        f"steps before; python -m capo_ray.replay {tmp_path} names the response"
    )
    assert heard[1] == said.format(1) and heard[5] == said.format(2)
    with pytest.raises(Diverged) as error:
        watch.look(broken)
    assert str(error.value) == (f"{said.format(3)}. Then go on from a checkpoint with a lower trainer.learning_rate")


def test_the_first_gradient_that_is_not_finite_may_end_the_run(tmp_path: Path) -> None:
    watch = NonfiniteWatch(stop_after=1, run_dir=tmp_path)
    assert watch.look(WELL) is None
    with pytest.raises(Diverged, match=r"^1 optimizer step skipped, the gradient was not finite"):
        watch.look(WELL | {"trainer/nonfinite_steps": 1.0})
