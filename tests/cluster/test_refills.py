"""Dynamic sampling: groups that teach nothing are replaced, and counted all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from capo_ray.cluster.arrivals import Errand
from capo_ray.cluster.crew import RayCrew
from capo_ray.cluster.parts import CrewSettings
from capo_ray.cluster.turns import AllAwake
from capo_ray.planning.turns import Phase
from capo_ray.types import Batch, GroupSummary, Prompt, Sampling


class Crew(RayCrew):
    """Its groups have credit if their problem's name is in `telling`."""

    def __init__(self, telling: set[str], refills: int) -> None:
        settings = CrewSettings(
            seed=0,
            responses_per_prompt=2,
            sampling=Sampling(max_tokens=1),
            max_dropped_share=1.0,
            refills=refills,
            samples_per_step=3,
        )
        parts: Any = SimpleNamespace(
            workers=[],
            aggregators=[],
            prompts_for=self.prompts_for,
            canaries_for=lambda step, prompts: [],
            budget=None,
            score_ahead=None,
            turns=AllAwake(),
        )
        super().__init__(parts, settings)
        self.telling = telling
        self.asked: list[tuple[str, int]] = []

    def prompts_for(self, step: int, attempt: int) -> list[Prompt]:
        return [Prompt(id=f"{name}{attempt}", question="q", token_ids=(1,), answer="a") for name in "abc"]

    async def _group(self, prompt: Prompt, errand: Errand, num_samples: int, ahead: Any) -> GroupSummary:
        self.asked.append((prompt.id, num_samples))
        return GroupSummary(
            prompt_id=prompt.id,
            prompt_tokens=1,
            lengths=(2, 2),
            oldest_version=errand.step,
            has_credit=prompt.id in self.telling,
            tally={},
            handle=None,
        )


def collected(telling: set[str], refills: int) -> tuple[Crew, Batch]:
    crew = Crew(telling, refills)
    return crew, asyncio.run(crew.collect(0))


@pytest.mark.parametrize(
    ("telling", "refills", "kept", "spare"),
    [
        ({"a0"}, 0, ["a0", "b0", "c0"], []),
        ({"a0", "b0", "c0"}, 2, ["a0", "b0", "c0"], []),
        ({"a0", "a1", "b1"}, 2, ["a0", "a1", "b1"], ["b0", "c0"]),
        ({"b0", "b1", "a2"}, 2, ["a2", "b0", "b1"], ["a1", "c0", "a0"]),
        (set(), 1, ["a0", "b0", "c0"], ["a1", "b1", "c1"]),
    ],
)
def test_groups_without_credit_are_replaced(telling: set[str], refills: int, kept: list[str], spare: list[str]) -> None:
    crew, batch = collected(telling, refills)
    assert [group.prompt_id for group in batch.groups] == kept
    assert [group.prompt_id for group in batch.spare] == spare
    assert sum(samples for _, samples in crew.asked) == 3


def test_only_as_many_are_asked_for_as_are_missing() -> None:
    crew, _ = collected({"a0", "b0", "a1"}, 3)
    assert [name for name, _ in crew.asked] == ["a0", "b0", "c0", "a1"]


class Turns(AllAwake):
    """Keeps which phases were taken; weights are gone after each but sync and sample."""

    judges_later = True

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.keeps = False

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        self.keeps = True
        yield
        self.keeps = False

    async def take(self, phase: Phase) -> None:
        if phase != self.phase:
            self.taken.append(phase)
        self.phase = phase

    def needs_sync(self) -> bool:
        return self.phase not in ("sync", "sample")

    async def with_trainer(self) -> None:
        if self.phase not in ("sync", "train"):
            await self.take("train")


def test_critics_that_judge_beside_sampling_are_kept_as_long_as_it_lasts() -> None:
    class Together(Crew):
        async def _group(self, prompt: Prompt, errand: Errand, num_samples: int, ahead: Any) -> GroupSummary:
            assert (turns.phase, turns.keeps) == ("sample", True)
            return await super()._group(prompt, errand, num_samples, ahead)

    crew, turns = Together(set(), refills=0), Turns()
    turns.phase, turns.judges_later = "sync", False
    crew._turns = turns
    assert len(asyncio.run(crew.collect(0)).groups) == 3
    assert not turns.keeps


def test_in_turns_all_are_sampled_then_all_judged_and_weights_come_anew_for_refills() -> None:
    class Shard:
        def __getattr__(self, what: str) -> Any:
            return SimpleNamespace(remote=getattr(type(self), f"do_{what}").__get__(self))

        async def do_sampled(self, *given: Any) -> None:
            pass

        async def do_judge_group(self, prompt: Prompt, seed: int, step: int) -> None:
            assert turns.phase == "judge"
            happened.append(f"judge {prompt.id}")

        async def do_close_group(self, prompt: Prompt, errand: Errand, num_samples: int) -> GroupSummary:
            assert errand.kind == "verify"
            return await Crew._group(crew, prompt, errand, num_samples, None)

        async def do_canaries_done(self) -> None:
            assert turns.phase == "judge"
            happened.append("canaries")

    class InTurn(Crew):
        async def _sample(self, prompt: Prompt, errand: Errand, ahead: Any) -> None:
            assert turns.phase == "sample"
            happened.append(f"sample {prompt.id}")

        async def sync(self, version: int) -> None:
            """As a run does before each of its steps."""
            assert version == 7
            await turns.take("sync")
            happened.append("sync")

    happened: list[str] = []
    turns = Turns()
    crew = InTurn({"a0", "b0", "a1"}, refills=1)
    crew._turns, crew._trained = turns, 7
    crew._parts.aggregators.append(Shard())  # type: ignore[attr-defined]
    batch = asyncio.run(crew.collect(0))
    assert [group.prompt_id for group in batch.groups] == ["a0", "b0", "a1"]
    assert turns.taken == ["sync", "sample", "judge"] * 2
    first = ["sync", *(f"{what} {name}0" for what in ("sample", "judge") for name in "abc"), "canaries"]
    assert happened == [*first, "sync", "sample a1", "judge a1", "canaries"]


def test_groups_do_not_wait_for_canaries_to_be_begun() -> None:
    """They would take the gate too late, behind an update, and be sampled from newer weights."""

    class Asked(Crew):
        async def _group(self, prompt: Prompt, errand: Errand, num_samples: int, ahead: Any) -> GroupSummary:
            asked.set()
            return await super()._group(prompt, errand, num_samples, ahead)

    async def begin(canaries: list[str]) -> None:
        await asked.wait()
        begun.extend(canaries)

    asked, begun = asyncio.Event(), list[str]()
    crew = Asked({"a0"}, refills=0)
    parts: Any = crew._parts
    parts.canaries_for = lambda step, prompts: ["one"]
    parts.aggregators.append(SimpleNamespace(begin_canaries=SimpleNamespace(remote=begin)))
    asyncio.run(asyncio.wait_for(crew.collect(0), 5))
    assert begun == ["one"]
