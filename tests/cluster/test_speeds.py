"""How fast actors were, from their totals."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from capo_ray.cluster.speeds import Speeds, grown, speeds


def engine(generated: float, busy_s: float, prompt: float = 0, cached: float = 0) -> dict[str, float]:
    return {"generated_tokens": generated, "busy_s": busy_s, "prompt_tokens": prompt, "cached_tokens": cached}


def test_by_actor_and_by_role() -> None:
    made = speeds(
        {
            "rollout": {"rollout-0": engine(800, 8, 100, 25), "rollout-1": engine(100, 2)},
            "critic": {"critic-0": engine(0, 0)},
            "trainer": {"trainer-0": {"trained_tokens": 600, "busy_s": 5, "stage_s_update": 3}},
            "aggregator": {},
        },
        elapsed=10,
    )
    assert made == pytest.approx(
        {
            "speed/rollout_tokens_per_s": 90.0,
            "cache/rollout_prompt_hit_share": 0.25,
            "actor/rollout-0/tokens_per_s": 100.0,
            "actor/rollout-1/tokens_per_s": 50.0,
            "actor/rollout-0/busy_share": 0.8,
            "actor/rollout-1/busy_share": 0.2,
            "idle/rollout_share": 0.5,
            "actor/critic-0/busy_share": 0.0,
            "idle/critic_share": 1.0,
            "actor/trainer-0/tokens_per_s": 200.0,
            "actor/trainer-0/busy_share": 0.5,
            "idle/trainer_share": 0.5,
        }
    )


def test_what_was_added() -> None:
    assert grown({"busy_s": 3, "running": 5}, {"busy_s": 4, "running": 2, "c": 1}) == {
        "busy_s": 1,
        "running": -3,
        "c": 1,
    }
    assert grown({"busy_s": 3, "generated_tokens": 5}, {"busy_s": 4, "generated_tokens": 2}) == {
        "busy_s": 4,
        "generated_tokens": 2,
    }


class Call:
    """Stands for an actor's method."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def remote(self) -> Any:
        return self()

    async def __call__(self) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def parts(**given: Any) -> Any:
    none = {"workers": [], "critics": [], "aggregators": [], "trainers": SimpleNamespace(metrics=Call([]))}
    return SimpleNamespace(**{**none, **given})


def test_an_actor_that_is_lost_is_left_out_until_it_is_back() -> None:
    worker = SimpleNamespace(metrics=Call(engine(100, 1), ActorUnavailableError("starting", b"1" * 16), engine(40, 1)))
    shard = SimpleNamespace(
        totals=Call(*[{"busy_s": 0.0}] * 3), engines=Call({}, {}, {"judge at host": engine(7, 1, 10, 5)})
    )
    trainers = SimpleNamespace(metrics=Call([], ActorDiedError(), []))
    crew = Speeds(parts(workers=[worker], aggregators=[shard], trainers=trainers))

    async def three() -> list[dict[str, float]]:
        return [await crew.take() for _ in range(3)]

    first, second, third = asyncio.run(three())
    assert first["actor/rollout-0/tokens_per_s"] == 100
    assert not any("rollout" in name for name in second)
    assert third["actor/rollout-0/tokens_per_s"] == 40
    assert third["actor/judge at host from aggregator-0/tokens_per_s"] == third["speed/critic_tokens_per_s"] == 7
    assert third["cache/critic_prompt_hit_share"] == 0.5


def test_other_errors_are_raised() -> None:
    worker = SimpleNamespace(metrics=Call(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(Speeds(parts(workers=[worker])).take())
