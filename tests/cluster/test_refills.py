"""Dynamic sampling: groups that teach nothing are replaced, and counted all the same."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from capo_ray.cluster.arrivals import Errand
from capo_ray.cluster.crew import CrewSettings, RayCrew
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
