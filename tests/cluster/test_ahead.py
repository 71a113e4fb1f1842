"""When ranks are asked to score responses: once all of a batch are sampled, and before they are judged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capo_ray.cluster import nonfinite
from capo_ray.cluster.actors import TrainerActor
from capo_ray.cluster.ahead import Groups, ScoreAhead
from capo_ray.cluster.arrivals import Errand
from capo_ray.cluster.crew import RayCrew
from capo_ray.cluster.trainer_group import TrainerGroup
from capo_ray.cluster.turns import AllAwake
from capo_ray.config.compose import compose
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.training.build import scored_ahead
from capo_ray.types import Prompt, Rollout, TrainSequence, Update

PROMPTS = [Prompt(id=name, question="q", token_ids=(number,), answer="a") for number, name in enumerate("ab")]


def test_ranks_score_what_is_sampled_once_all_of_a_batch_is_there() -> None:
    """In the order of the prompts, whoever was first."""
    happened: list[Any] = []

    async def score(groups: Groups) -> None:
        happened.append([(prompt.id, responses) for prompt, responses in groups])

    def kept(prompt: Prompt) -> str:
        happened.append(prompt.id)  # while they are there: a group that is done is gone
        return f"of {prompt.id}"

    async def use() -> None:
        ahead, (a, b) = ScoreAhead(score, PROMPTS, kept), PROMPTS
        assert ahead.sampled(b) == "of b"  # whoever lets the group go waits for it
        await asyncio.sleep(0.01)
        assert happened == ["b"]
        ahead.sampled(a)
        await ahead.end()
        ahead.leave()
        assert ScoreAhead(None, PROMPTS, kept).sampled(a) is None

    asyncio.run(use())
    assert happened == ["b", "a", [("a", "of a"), ("b", "of b")]]


def rollout(prompt: str, index: int, *token_ids: int) -> Rollout:
    return Rollout(
        prompt_id=prompt, index=index, text="", finish="stop", token_ids=token_ids, logprobs=(-1.0,) * len(token_ids),
        char_ends=(0,) * len(token_ids), versions=(0,),
    )  # fmt: skip


def test_a_rank_gets_its_sequences_or_says_that_it_lost_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray.exceptions import ObjectLostError

    asked: list[tuple[list[TrainSequence] | None, bool]] = []

    class Engine:
        def score(self, mine: list[TrainSequence] | None, *, old: bool) -> None:
            asked.append((mine, old))

    actor = TrainerActor(lambda **given: Engine(), lambda: None, 0)
    actor.start("h", 1)
    monkeypatch.setattr(ray, "get", lambda refs, timeout: refs)
    actor.score(PROMPTS, [[rollout("a", 0, 7), rollout("a", 1, 5, 6)], [rollout("b", 0), rollout("b", 1, 8)]], True)
    mine, old = asked.pop()
    assert mine is not None and old
    assert [(one.prompt_ids, one.token_ids) for one in mine] == [((0,), (7,)), ((0,), (5, 6)), ((1,), (8,))]

    def lost(refs: Any, timeout: float) -> Any:
        raise ObjectLostError("ff", "owner", "site")

    monkeypatch.setattr(ray, "get", lost)
    actor.score(PROMPTS, ["ref", "ref"], False)
    assert asked == [(None, False)]


@pytest.mark.parametrize("count", [0.0, 1.0])
def test_a_rank_keeps_what_it_trained_on_where_a_gradient_was_not_finite(tmp_path: Path, count: float) -> None:
    class Engine:
        step = 5

        def update(self, batch: UpdateBatch) -> Update:
            self.step = 6
            return Update(metrics={"nonfinite_steps": count}, version=1)

    actor = TrainerActor(lambda **given: Engine(), lambda: None, 1)
    actor.start("h", 1)
    one = TrainSequence(prompt_ids=(1,), token_ids=(2,), advantages=(1.0,), logprobs=(-1.0,), source="a/3")
    actor.update(str(tmp_path / "kept"), (0.0, 1.0), [[[(0, 0)]]], [1.0], (one,))
    assert (tmp_path / "kept").exists() == bool(count)
    if count:
        nonfinite.write_update(tmp_path / "kept", step=2, ranks=2, checkpoint=None, metrics={})
        (tmp_path / "kept" / "rank_0.json").write_bytes((tmp_path / "kept" / "rank_1.json").read_bytes())
        kept = nonfinite.read(tmp_path / "kept")
        assert kept.optimizer_step == 5 and kept.shares[1].micro_batches == [[[one]]]


@pytest.mark.parametrize(
    ("overrides", "ahead"),
    [
        ((), (True, False)),
        (("algorithm.kl_weight=0.1",), (True, True)),
        (("trainer.responses_per_update=null",), (False, False)),
        (("algorithm.kl_weight=0.1", "algorithm.old_logprobs=sampler"), (False, True)),
        (("algorithm.kl_weight=0.1", "critic=null", "algorithm=grpo"), (False, False)),
        (("algorithm.kl_weight=0.1", "algorithm.max_staleness=1", "algorithm.old_logprobs=sampler"), (False, False)),
    ],
)
def test_what_is_made_ahead_is_what_an_update_needs_and_waits_for(
    overrides: tuple[str, ...], ahead: tuple[bool, bool]
) -> None:
    assert scored_ahead(compose(["+experiment=tiny_cpu", "trainer.responses_per_update=64", *overrides])) == ahead


class Remote:
    """An actor's method."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    async def remote(self, *given: Any) -> Any:
        return self._answer(*given)


def test_a_step_has_its_responses_scored_by_the_ranks_in_whole_groups_while_the_last_is_judged() -> None:
    """From the crew to the call of each rank."""
    happened: list[Any] = []

    class Sampling:
        async def generate(self, ask: Callable[..., Any], seeds: Any, held: Any, *, max_tokens: int) -> None:
            await ask(Worker, seeds)

    class Worker:
        sample_for = Remote(lambda shard, errand, prompt, sampling, seeds: happened.append(f"sampled {prompt.id}"))

    def rank(number: int) -> Any:
        return SimpleNamespace(
            score=Remote(lambda prompts, given, old: happened.append((number, [one.id for one in prompts], given, old)))
        )

    trainers = TrainerGroup(
        [rank(0), rank(1)], tokens_per_micro_batch=9, responses_per_update=2, packing="padded",
        aggregation="token_mean", max_response_tokens=9, old_ahead=True,
    )  # fmt: skip

    class Shard:
        class rollouts:
            @staticmethod
            def remote(prompt: Prompt, errand: Errand) -> str:
                return f"of {prompt.id}"

        class close_group:
            @staticmethod
            async def remote(prompt: Prompt, errand: Errand, samples: int, read: str) -> str:
                assert read == f"of {prompt.id}"  # which Ray waits for: until then the group must be there
                await asyncio.sleep(0.05)
                happened.append(f"closed {prompt.id}")
                return prompt.id

    parts: Any = SimpleNamespace(
        workers=[], aggregators=[Shard()], budget=None, trainers=trainers, score_ahead=trainers.score
    )
    settings: Any = SimpleNamespace(responses_per_prompt=2, seed=0, sampling=SimpleNamespace(max_tokens=1))
    crew = RayCrew.__new__(RayCrew)
    crew._parts, crew._settings, crew._rollouts = parts, settings, Sampling()  # type: ignore[assignment]
    crew._turns = AllAwake()

    assert asyncio.run(crew._groups(PROMPTS, 1, 0)) == ["a", "b"]
    assert sorted(happened[:2]) == ["sampled a", "sampled b"]
    assert happened[2:4] == [(0, ["a"], ["of a"], True), (1, ["b"], ["of b"], True)]
    assert sorted(happened[4:]) == ["closed a", "closed b"]
