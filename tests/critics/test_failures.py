"""When failed critiques end a run: over whole steps, after a warning, whatever arrives first."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.cluster.crew import RayCrew
from capo_ray.cluster.parts import CrewSettings
from capo_ray.cluster.turns import AllAwake
from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.steps import steps_of
from capo_ray.critics.failures import FailureLimit
from capo_ray.critics.service import CriticsFailed
from capo_ray.records.tally import count_group
from capo_ray.types import Batch, Critique, CritiqueOutcome, GroupSummary, Metrics, Rollout, Sampling, Update

OUTCOMES: list[CritiqueOutcome] = ["ok", "unreadable", "truncated", "timeout", "refused", "not_asked"]


def group(*outcomes: CritiqueOutcome, cached: bool = False) -> Metrics:
    """The counts of a prompt whose one response got these critiques."""
    rollout = Rollout(
        prompt_id="p", index=0, text="a", finish="stop", token_ids=(1,), logprobs=(0.0,), char_ends=(1,), versions=(0,)
    )
    made = tuple(Critique(text="", outcome=outcome, cached=cached) for outcome in outcomes)
    member = Member(rollout=rollout, steps=steps_of("a", (1,)), critiques=made, answer="correct")
    return count_group(score_group([member], Scheme()), [None])


BAD, GOOD, MIXED = group(*["unreadable"] * 4), group(*["ok"] * 4), group("ok", "ok", "unreadable", "truncated")


def outcome(limit: FailureLimit, steps: Sequence[Sequence[Metrics]]) -> list[str]:
    """Of each step: nothing, a warning, or the end."""
    said = []
    for number, groups in enumerate(steps):
        try:
            said.append("warning" if limit.look(number, groups) else "")
        except CriticsFailed:
            return [*said, "end"]
    return said


def run(*steps: Sequence[Metrics], prompts: int = 4, max_share: float = 0.5) -> list[str]:
    return outcome(FailureLimit(max_share=max_share, prompts=prompts), steps)


def test_a_warning_comes_before_the_end() -> None:
    assert run([GOOD] * 4, [BAD] * 4, [BAD] * 4) == ["", "warning", "end"]
    assert run([BAD] * 4, [GOOD] * 4, [BAD] * 4) == ["warning", "", "warning"]


def test_a_hard_prompt_is_no_bad_critic() -> None:
    """64 critiques of one prompt in a row, as many as a window of critiques held a quarter of."""
    hard = group(*["truncated"] * 64)
    fine = group(*["ok"] * 64)
    assert run([fine] * 7 + [hard], [hard] + [fine] * 7, prompts=16) == ["", ""]


def test_it_takes_enough_prompts_and_the_last_whole_step() -> None:
    assert run([BAD], [BAD], [BAD], [BAD], [BAD]) == ["", "", "", "warning", "end"]
    assert run([GOOD] * 40, [BAD] * 40, [BAD] * 40) == ["", "warning", "end"]  # a step that is larger counts whole
    assert run([GOOD] * 3, [BAD] * 3, [BAD] * 3) == ["", "", "warning"]  # 3 of 6, then 6 of 6


def test_a_critic_that_never_answers_ends_the_run_in_its_first_step() -> None:
    dead = group("timeout", "engine_error", "timeout", "timeout")
    assert run([dead]) == ["end"]
    assert run([MIXED, MIXED], [dead] * 4) == ["", "warning"]
    assert run([group("unreadable", "timeout", "timeout", "timeout")]) == [""]


def test_what_is_nobodys_failure_and_what_came_before_count_in_nothing() -> None:
    nobody = group("refused", "not_asked", "cancelled", "refused")
    assert run([nobody] * 8, [BAD] * 3, [nobody] * 3) == ["", "", ""]
    assert run([GOOD] * 4, [group("unreadable", cached=True)] * 4, [group("unreadable", cached=True)] * 4) == [""] * 3
    assert run([BAD] * 4, [BAD] * 4, max_share=1.0) == ["", ""]
    assert run([], []) == ["", ""]


def test_the_message() -> None:
    limit = FailureLimit(max_share=0.5, prompts=4)
    warning = limit.look(1, [BAD, MIXED, MIXED, BAD])
    assert warning is not None and warning.startswith(
        "12 of the 16 critiques of step 1 failed (unreadable 10, truncated 2); 50% may (critic.max_failed_share), and "
        "the run ends if the next step is no better."
    )
    with pytest.raises(CriticsFailed) as caught:
        limit.look(2, [BAD, BAD])
    assert str(caught.value) == (
        "20 of the 24 critiques of steps 1 to 2 failed (unreadable 18, truncated 2); 50% may (critic.max_failed_share)"
    )


STEPS = st.lists(
    st.lists(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=6), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


@given(STEPS, st.randoms(use_true_random=False), st.integers(1, 8))
def test_no_order_of_arrival_changes_anything(
    steps: list[list[list[CritiqueOutcome]]], order: random.Random, prompts: int
) -> None:
    """Neither of critiques within a prompt nor of prompts within a step."""

    def shuffled(items: list[Any]) -> list[Any]:
        return order.sample(items, len(items))

    there = [[group(*outcomes) for outcomes in prompts_of] for prompts_of in steps]
    again = [[group(*shuffled(outcomes)) for outcomes in shuffled(prompts_of)] for prompts_of in steps]
    assert run(*there, prompts=prompts) == run(*again, prompts=prompts)


def test_a_third_of_failures_that_hang_together_is_borne() -> None:
    """Shares per prompt as the tutorial's run has them: a mean of 32 %, single prompts up to 78 %."""
    draw = random.Random(0)

    def prompt() -> Metrics:
        share = min(0.78, draw.betavariate(1.2, 2.6))
        return group(*["unreadable" if draw.random() < share else "ok" for _ in range(64)])

    for _ in range(20):
        assert "end" not in run(*[[prompt() for _ in range(8)] for _ in range(10)], prompts=16)


class Shard:
    def __init__(self) -> None:
        self.written: list[int] = []
        self.failure = SimpleNamespace(remote=self._failure)
        self.write_samples = SimpleNamespace(remote=self._write)

    async def _failure(self) -> str:
        return "a reply that ends in 'hm'"

    async def _write(self, step: int, spare: Sequence[str]) -> None:
        self.written.append(step)


def test_a_crew_ends_before_it_trains_and_leaves_what_critics_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = CrewSettings(
        seed=0, responses_per_prompt=1, sampling=Sampling(max_tokens=1), max_dropped_share=1.0, refills=0,
        samples_per_step=0, max_failed_share=0.5, failure_prompts=1,
    )  # fmt: skip
    shard = Shard()

    async def trained(batch: Batch, keep_in: Path) -> Update:
        return Update(metrics={"nonfinite_steps": 0.0}, version=1)

    trainers = SimpleNamespace(update=trained)
    parts: Any = SimpleNamespace(workers=[], aggregators=[shard], trainers=trainers, run_dir=tmp_path, turns=AllAwake())
    crew = RayCrew(parts, settings)
    summary = GroupSummary(
        prompt_id="p", prompt_tokens=1, lengths=(2,), oldest_version=0, has_credit=True, tally=BAD, handle=None
    )
    asyncio.run(crew.update(Batch(step=1, groups=(summary,), seconds=0.0)))
    assert "One of them: a reply that ends in 'hm'" in caplog.text and shard.written == []
    with pytest.raises(
        CriticsFailed, match=r"4 of the 4 critiques of step 2 failed .*One of them: a reply that ends in"
    ):
        asyncio.run(crew.update(Batch(step=2, groups=(summary,), seconds=0.0)))
    assert shard.written == [2]
