"""Which groups are judged under a budget of critic tokens: the order, the estimate, and what it depends on."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from asked import asked_with
from responses import response
from seeded_critic import SeededCritic

from capo_ray.cluster.arrivals import Errand
from capo_ray.cluster.crew import RayCrew
from capo_ray.cluster.parts import CrewSettings
from capo_ray.cluster.turns import AllAwake
from capo_ray.credit.critique import Reference
from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.critics.budget import WINDOW, CriticBudget, Sampled
from capo_ray.critics.service import Critics
from capo_ray.records.tally import count_group
from capo_ray.types import Answer, Batch, Critique, GroupSummary, Metrics, Prompt, Sampling, Step

ANSWERS: dict[str, Answer] = {"r": "correct", "w": "wrong", "?": "unverifiable"}


def groups(*shorthand: str, num_steps: int = 1) -> list[list[Sampled]]:
    """`r` right, `w` wrong, `?` unverifiable, a letter per response."""
    return [[Sampled(ANSWERS[letter], num_steps) for letter in group] for group in shorthand]


MIXED_LAST = groups("rr", "??", "ww", "r?", "rr", "ww", "rw", "w?r")


@pytest.mark.parametrize(
    ("fit", "judged"),
    [
        (0, []),
        (1, [6]),  # two of these cost 2 + 3 responses
        (2.5, [6, 7]),
        (3.5, [2, 6, 7]),
        (5, [2, 5, 6, 7]),
        (6.5, [0, 2, 4, 5, 6, 7]),
        (7.5, [0, 1, 2, 4, 5, 6, 7]),
        (8.5, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_mixed_groups_come_first_then_wrong_then_right_each_in_their_order(fit: float, judged: list[int]) -> None:
    budget = CriticBudget(int(fit * 2 * 10), most_per_response=10)
    admitted = budget.admit(0, MIXED_LAST)
    assert [place for place, chosen in enumerate(admitted) if chosen] == judged


def test_a_group_that_does_not_fit_lets_no_later_one_pass() -> None:
    assert CriticBudget(50, most_per_response=10).admit(0, groups("rwrw", "rw", "r")) == [True, False, False]


def test_what_was_spent_before_is_gone() -> None:
    budget = CriticBudget(40, most_per_response=10)
    assert budget.admit(0, groups("rw", "rw"), spent=15) == [True, False]
    assert budget.admit(0, groups("rw", "rw"), spent=50) == [False, False]


def cost(tokens: float, steps: float) -> dict[str, float]:
    return {"judging_tokens": tokens, "answered_steps": steps}


def expected(budget: CriticBudget, step: int) -> float:
    """What a response of two steps is expected to cost at `step`, to a token: the smallest budget that admits it."""
    spent = [spent for spent in range(1001) if budget.admit(step, groups("r", num_steps=2), spent=1000 - spent)[0]]
    return spent[0]


def test_responses_cost_by_their_steps_what_those_of_the_last_steps_did() -> None:
    budget = CriticBudget(1000, most_per_response=400)
    assert expected(budget, 0) == 400
    budget.record(0, cost(0, 0))  # nobody replied
    assert expected(budget, 1) == 400
    budget.record(1, cost(1000, 8))
    assert expected(budget, 2) == 250
    for step in range(2, 2 + WINDOW):
        budget.record(step, cost(60, 4))
    assert expected(budget, 2 + WINDOW) == 30
    assert budget.admit(9, [*groups("rw", num_steps=50), *groups("rw")], spent=199) == [True, False]  # 400 each at most
    assert budget.admit(9, [*groups("rw", num_steps=50), *groups("rw")], spent=201) == [False, False]


def test_critics_that_cost_nothing_judge_everything() -> None:
    budget = CriticBudget(100, most_per_response=100)
    budget.record(0, cost(0, 3))
    assert budget.admit(1, groups("rr", "ww", "rw")) == [True] * 3


def test_the_estimate_leaves_out_what_may_not_be_known_yet() -> None:
    """Three batches are in flight: whenever one is chosen for, before or after those in front of it are written down,
    its responses cost the same."""
    budget = CriticBudget(1000, most_per_response=400, max_staleness=2)
    seen: dict[int, set[float]] = {}
    for step in range(3 * WINDOW):
        for in_flight in range(step, step + 3):
            seen.setdefault(in_flight, set()).add(expected(budget, in_flight))
        budget.record(step, cost(step * 8, 1))
    assert all(len(costs) == 1 for costs in seen.values())
    assert [seen[step] for step in range(6)] == [{400}, {400}, {400}, {0}, {8}, {16}]
    last = 3 * WINDOW - 1
    assert seen[last] == {2 * sum(range(last - 2 - WINDOW, last - 2))}


def test_a_checkpoint_brings_the_estimate_back() -> None:
    budget, resumed = (CriticBudget(1000, most_per_response=400, max_staleness=1) for _ in range(2))
    for step in range(2 * WINDOW):
        budget.record(step, cost(step * 7, 3))
    resumed.restore(json.loads(json.dumps(budget.state())))
    for step in range(2 * WINDOW, 3 * WINDOW):
        assert expected(resumed, step) == expected(budget, step)
        for one in (budget, resumed):
            one.record(step, cost(step * 7, 3))


def test_what_a_cache_had_costs_as_much() -> None:
    """A run that was stopped has lost its cache, and must admit the same groups."""
    steps = (Step(text="a", chars=(0, 1), tokens=(0, 1)),)

    def tally(size: int) -> Metrics:
        """Of four responses; every other one is equal to the first."""

        async def scene() -> list[tuple[Critique, ...]]:
            critics = Critics([SeededCritic(num_steps=1)], asked_with(cache=size))
            return [
                await critics.judge(asked, Reference("none"), ["a"], response_key="", seed=0)
                for asked in ("1?", "2?", "1?", "3?", "1?")
            ]

        members = [
            Member(rollout=response("a"), steps=steps, critiques=made, answer="wrong") for made in asyncio.run(scene())
        ]
        return count_group(score_group(members, Scheme()), [None] * len(members))

    kept, lost = tally(8), tally(1)  # the second keeps the last one alone
    assert kept["critique_tokens"] < lost["critique_tokens"] == lost["judging_tokens"]
    estimates = []
    for counts in (kept, lost):
        budget = CriticBudget(1000, most_per_response=400)
        budget.record(0, counts)
        estimates.append(expected(budget, 1))
    assert estimates[0] == estimates[1] > 0


# ---- the crew ------


class Shard:
    """Judges at ten tokens a response; takes its time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.verified: dict[str, list[str]] = {}
        self.judged: list[str] = []
        self.left: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self, f"do_{name}"))

    async def do_verify(self, prompt: Prompt, rollout: int) -> int:
        await asyncio.sleep(self.rng.random() / 100)
        assert not self.judged and not self.left, "judging began before the last answer was there"
        self.verified.setdefault(prompt.id, []).append(prompt.question[rollout])
        return rollout

    async def do_sampled(self, prompt: Prompt, errand: Errand, read: object) -> tuple[Sampled, ...]:
        return tuple(groups(prompt.question)[0])

    async def do_judge_group(self, prompt: Prompt, seed: int, step: int) -> None:
        await asyncio.sleep(self.rng.random() / 100)
        self.judged.append(prompt.id)

    async def do_leave_group(self, prompt: Prompt) -> None:
        self.left.append(prompt.id)

    async def do_close_group(self, prompt: Prompt, errand: Errand, num_samples: int) -> GroupSummary:
        count = float(len(self.verified[prompt.id]))
        tokens = 10 * count if prompt.id in self.judged else 0.0
        return GroupSummary(
            prompt_id=prompt.id,
            prompt_tokens=1,
            lengths=(2, 2),
            oldest_version=errand.step,
            has_credit=prompt.id in self.judged or prompt.question == "rw",
            tally={"responses": count, "judging_tokens": tokens, "answered_steps": tokens / 10},
            handle=None,
        )


class Crew(RayCrew):
    """Its problems are named by their order, and ask for answers; it has one shard."""

    def __init__(self, budget: CriticBudget, *attempts: Sequence[str], seed: int = 0) -> None:
        settings = CrewSettings(
            seed=0,
            responses_per_prompt=2,
            sampling=Sampling(max_tokens=1),
            max_dropped_share=1.0,
            refills=len(attempts) - 1,
            samples_per_step=0,
        )
        self.shards = [Shard(random.Random(seed)) for _ in attempts]
        self.attempts = attempts
        self.rng = random.Random(seed)
        parts: Any = SimpleNamespace(
            workers=[],
            aggregators=self.shards[:1],
            prompts_for=self.prompts_for,
            canaries_for=lambda step, prompts: [],
            score_ahead=None,
            budget=budget,
            turns=AllAwake(),
        )  # fmt: skip
        super().__init__(parts, settings)

    def prompts_for(self, step: int, attempt: int) -> list[Prompt]:
        self._parts.aggregators[:] = self.shards[attempt : attempt + 1]
        return [
            Prompt(id=f"{attempt}{number}", question=wanted, token_ids=(1,), answer="a")
            for number, wanted in enumerate(self.attempts[attempt])
        ]

    async def _sample(self, prompt: Prompt, errand: Errand, ahead: Any) -> None:
        assert errand.kind == "verify"
        await asyncio.sleep(self.rng.random() / 100)
        await asyncio.gather(*(self._shard(prompt).verify.remote(prompt, index) for index in range(2)))


def collected(crew: Crew) -> Batch:
    return asyncio.run(crew.collect(0))


@pytest.mark.parametrize("seed", range(3))
def test_judging_waits_for_all_answers_and_does_not_depend_on_who_was_first(seed: int) -> None:
    crew = Crew(CriticBudget(60, most_per_response=10), ["rr", "ww", "rw", "ww", "rw"], seed=seed)
    batch = collected(crew)
    assert sorted(crew.shards[0].judged) == ["01", "02", "04"] and sorted(crew.shards[0].left) == ["00", "03"]
    assert [group.prompt_id for group in batch.groups] == ["00", "01", "02", "03", "04"]
    assert [group.tally["over_budget"] for group in batch.groups] == [2, 0, 0, 2, 0]


def test_refills_have_what_the_step_has_left() -> None:
    """Ninety tokens: forty for the mixed ones, forty for the wrong ones; ten are not enough for another."""
    crew = Crew(CriticBudget(90, most_per_response=10), ["rw", "ww", "rw", "ww", "rr"], ["rw", "rw"])
    batch = collected(crew)
    assert sorted(crew.shards[0].judged) == ["00", "01", "02", "03"]
    assert crew.shards[1].judged == [] and crew.shards[1].left == ["10"]
    assert [group.prompt_id for group in (*batch.groups, *batch.spare)] == ["00", "01", "02", "03", "10", "04"]
