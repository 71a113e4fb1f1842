"""The crew where it needs no actor: what it writes down, and what it does not do twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError

from capo_ray.cluster.crew import CrewSettings, RayCrew
from capo_ray.config.blocks import Tracking
from capo_ray.tracking import Tracker
from capo_ray.types import Metrics, Prompt, Sampling

PROMPT = Prompt(id="held-out-0", question="q", token_ids=(1,), answer="a")


class Crew(RayCrew):
    """Its policy is always right."""

    def __init__(self, run_dir: Path) -> None:
        tracker = Tracker(
            run_dir, Tracking(wandb="off", tensorboard=False), run_name="r", resolved_config={}, total_steps=4
        )
        parts: Any = SimpleNamespace(workers=[], critics=[], aggregators=[], held_out=[PROMPT], tracker=tracker)
        settings = CrewSettings(
            seed=0,
            responses_per_prompt=2,
            sampling=Sampling(max_tokens=1),
            max_dropped_share=1.0,
            refills=0,
            samples_per_step=0,
        )
        super().__init__(parts, settings)

    async def _evaluate_one(self, prompt: Prompt, tallies: list[dict[str, float]]) -> None:
        tallies.append({"responses": 1.0, "verified": 1.0, "correct": 1.0})


def test_an_evaluation_is_made_once(tmp_path: Path) -> None:
    """Also by the crew that goes on where another stopped."""
    for _ in range(2):
        crew = Crew(tmp_path)
        for step in (0, 2, 2):
            asyncio.run(crew.evaluate(step))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["evaluation/outcome/accuracy"]) for line in lines] == [(0, 1.0), (2, 1.0)]


class Actor:
    """Its `metrics` give or raise one thing after the other."""

    def __init__(self, *answers: float | Exception) -> None:
        """Numbers are tokens generated since the start, one a second."""
        self._answers = iter(answers)
        self.metrics = SimpleNamespace(remote=self._metrics)

    async def _metrics(self) -> Metrics:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return {"generated_tokens": answer, "busy_s": 10.0, "prompt_tokens": answer, "cached_tokens": answer / 2}


def test_an_engine_that_is_started_again_stops_no_run(tmp_path: Path) -> None:
    """While it is away the others are counted; afterwards it counts from 0."""
    crew: Any = Crew(tmp_path)
    away = ActorUnavailableError("starting", b"1" * 16)
    crew._parts.critics = [Actor(100.0, away, RayActorError(), 50.0), Actor(100.0, 300.0, RayActorError(), 400.0)]

    async def scene() -> list[Metrics]:
        return [await crew._counted("critic", crew._parts.critics) for _ in range(4)]

    counted = asyncio.run(scene())
    assert [new.get("generated_tokens") for new in counted] == [200, 200, None, 50 + 100]
    assert [new.get("cached_tokens") for new in counted] == [100, 100, None, 25 + 50]


def test_a_step_without_a_critic_is_written_down(tmp_path: Path) -> None:
    crew: Any = Crew(tmp_path)
    crew._parts.critics = [Actor(RayActorError())]
    assert asyncio.run(crew._speeds()) == {}
    crew._parts.critics = [Actor(ValueError("a fault of its own"))]
    with pytest.raises(ValueError, match="a fault of its own"):
        asyncio.run(crew._speeds())


def test_prompts_of_servers_are_written_down(tmp_path: Path) -> None:
    """As they say, where there is no engine of the run's own to say it."""
    crew: Any = Crew(tmp_path)

    async def counted() -> Metrics:
        return {"prompt_tokens": 80.0, "cached_prompt_tokens": 60.0}

    crew._parts.aggregators = [SimpleNamespace(metrics=SimpleNamespace(remote=counted))]
    assert asyncio.run(crew._speeds()) == {"tokens/critic_prompts": 80, "cache/critic_prompt_hit_share": 0.75}
    crew._parts.critics = [Actor(100.0)]
    assert asyncio.run(crew._speeds())["cache/critic_prompt_hit_share"] == 0.5


def test_an_engine_that_is_down_counts_once_however_many_shards_ask_it(tmp_path: Path) -> None:
    def shard(down: float) -> Any:
        async def counted() -> Metrics:
            return {"engines_down": down, "retries": 2.0}

        return SimpleNamespace(metrics=SimpleNamespace(remote=counted))

    crew: Any = Crew(tmp_path)
    crew._parts.aggregators = [shard(0.0), shard(2.0), shard(1.0)]
    assert asyncio.run(crew._speeds()) == {"critic/engines_down": 2, "critic/retries": 6}
