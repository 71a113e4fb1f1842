"""The crew where it needs no actor: what it writes down, and what it does not do twice."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError

from capo_ray.cluster import nonfinite
from capo_ray.cluster.acceptance import TooManyDropped
from capo_ray.cluster.arrivals import Errand
from capo_ray.cluster.crew import RayCrew
from capo_ray.cluster.evaluation import over_problems
from capo_ray.cluster.parts import CrewSettings
from capo_ray.cluster.turns import AllAwake
from capo_ray.config.blocks import Tracking
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.records.tracking import Tracker
from capo_ray.types import Batch, GroupSummary, Metrics, Prompt, Sampling, Update

PROMPT = Prompt(id="held-out-0", question="q", token_ids=(1,), answer="a")


class Crew(RayCrew):
    """Its policy is always right."""

    def __init__(self, run_dir: Path, *, max_dropped_share: float = 1.0) -> None:
        tracker = Tracker(
            run_dir, Tracking(wandb="off", tensorboard=False), run_name="r", resolved_config={}, total_steps=4
        )
        parts: Any = SimpleNamespace(
            workers=[],
            held_out=[PROMPT],
            tracker=tracker,
            run_dir=run_dir,
            aggregators=[],
            checkpoints=Checkpoints(run_dir, keep=1),
            turns=AllAwake(),
        )
        settings = CrewSettings(
            seed=0,
            responses_per_prompt=2,
            sampling=Sampling(max_tokens=1),
            max_dropped_share=max_dropped_share,
            refills=0,
            samples_per_step=0,
        )
        super().__init__(parts, settings)

        made: Any = self
        made._rollouts = SimpleNamespace(generate=self._generate)

    async def _generate(self, ask: Any, seeds: Mapping[int, int], held: Any, *, max_tokens: int) -> None:
        """The shard that is asked afterwards knows more."""


async def right(prompt: Prompt, errand: Errand) -> list[Metrics]:
    return [{"responses": 1.0, "verified": 1.0, "correct": 1.0}]


def test_an_evaluation_is_made_once(tmp_path: Path) -> None:
    """Also by the crew that goes on where another stopped."""
    for _ in range(2):
        crew: Any = Crew(tmp_path)
        crew._parts.aggregators = [SimpleNamespace(checked=SimpleNamespace(remote=right))]
        for step in (0, 2, 2):
            asyncio.run(crew.evaluate(step))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["evaluation/outcome/accuracy"]) for line in lines] == [(0, 1.0), (2, 1.0)]


def test_what_engines_did_for_another_run_before_is_not_counted(tmp_path: Path) -> None:
    totals = {"busy_s": 10.0, "generated_tokens": 1000.0}

    async def now() -> Metrics:
        return dict(totals)

    async def no_ranks() -> list[Metrics]:
        return []

    async def use() -> Metrics:
        crew: Any = Crew(tmp_path)
        crew._parts.workers = [SimpleNamespace(metrics=SimpleNamespace(remote=now))]
        crew._parts.critics = crew._parts.aggregators = []
        crew._parts.trainers = SimpleNamespace(metrics=no_ranks)
        crew._parts.checkpoints = SimpleNamespace(newest=lambda: None)
        assert await crew.restore() == 0
        totals.update(busy_s=11.0, generated_tokens=1050.0)
        return await crew._speeds.take()

    assert asyncio.run(use())["speed/rollout_tokens_per_s"] == 50


def test_a_batch_of_dropped_groups_stops_the_run_and_says_what_was_lost(tmp_path: Path) -> None:
    """A group whose responses were cut off and are masked was not dropped: it does not count."""
    crew: Any = Crew(tmp_path, max_dropped_share=0.5)
    dropped = {"groups_dropped": 1.0, "responses": 2.0, "unverifiable": 1.0, "unjudged": 1.0, "critique_timeout": 4.0}

    def batch(*tallies: Metrics) -> Batch:
        groups = tuple(
            GroupSummary(
                prompt_id="p", prompt_tokens=1, lengths=(), oldest_version=0, has_credit=False, tally=tally, handle=None
            )
            for tally in tallies
        )
        return Batch(step=3, groups=groups, spare=(), seconds=0.0)

    told = (
        "step 3: 67% of the groups cannot be trained on, max_dropped_share is 50%: 4 responses, 2 unverifiable, "
        "2 unjudged, 8 timeout"
    )
    with pytest.raises(TooManyDropped, match=f"^{re.escape(told)}$"):
        asyncio.run(crew.update(batch(dropped, dropped, {"groups_dropped": 0.0})))

    done = Update(metrics={"nonfinite_steps": 0.0}, version=4)

    async def trained(batch: Batch, keep_in: Path) -> Update:
        return done

    crew._parts.trainers = SimpleNamespace(update=trained)
    masked = {"groups_dropped": 0.0}
    assert asyncio.run(crew.update(batch(dropped, masked, masked))) is done


def one_group() -> Batch:
    group = GroupSummary(
        prompt_id="p", prompt_tokens=1, lengths=(3, 3), oldest_version=3, has_credit=True, tally={}, handle=None
    )
    return Batch(step=3, groups=(group,), seconds=0.0)


def written(crew: Any) -> list[int]:
    """Of which steps samples are written, from now on."""
    steps: list[int] = []

    async def write(step: int, spare: list[str]) -> None:
        steps.append(step)

    crew._parts.aggregators.append(SimpleNamespace(write_samples=SimpleNamespace(remote=write)))
    return steps


def test_an_update_with_a_gradient_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    crew: Any = Crew(tmp_path)
    partial = crew._parts.checkpoints.begin(2)
    crew._parts.checkpoints.commit(partial, {"step": 2})

    async def trained(batch: Batch, keep_in: Path) -> Update:
        nonfinite.write_share(keep_in, 0, UpdateBatch(micro_batches=[[[]]], denominators=[1.0]), optimizer_step=6)
        return Update(metrics={"nonfinite_steps": 1.0, "loss": math.nan, "learning_rate": 0.5}, version=4)

    crew._parts.trainers = SimpleNamespace(update=trained, ranks=1)
    asyncio.run(crew.update(one_group()))
    kept = nonfinite.read(tmp_path / "nonfinite" / "step_000003")
    assert (kept.step, kept.optimizer_step, kept.checkpoint) == (3, 6, "step_000002")
    assert kept.metrics == {"nonfinite_steps": 1.0, "learning_rate": 0.5}


@pytest.mark.parametrize("error", [ValueError("not finite"), ObjectLostError("ff", "owner", "site")])
def test_an_update_that_fails_has_its_samples_written_unless_an_actor_was_lost(
    tmp_path: Path, error: Exception
) -> None:
    crew: Any = Crew(tmp_path)
    steps = written(crew)

    async def fails(batch: Batch, keep_in: Path) -> Update:
        raise error

    crew._parts.trainers = SimpleNamespace(update=fails)
    with pytest.raises(type(error)):
        asyncio.run(crew.update(one_group()))
    assert steps == ([3] if isinstance(error, ValueError) else [])


def test_records_are_on_the_disk_before_a_checkpoint_names_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them once; and again what is written anew after going back."""
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))

    async def saved(path: Path) -> None:
        (path / "weights").parent.mkdir(parents=True, exist_ok=True)
        (path / "trainer.json").write_text('{"format": 2}')

    crew: Any = Crew(tmp_path)
    crew._parts.trainers, crew._parts.budget = SimpleNamespace(save=saved), None
    monkeypatch.setattr(os, "fsync", fsync)

    def step(number: int) -> list[str]:
        crew._parts.tracker.step(number, {"loss": 1.0})
        for folder, name in (("samples", "jsonl"), ("critiques", "parquet"), ("responses", "parquet")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number:06d}-0.{name}").write_text("x")
        synced.clear()
        asyncio.run(crew.save(number))
        return sorted(synced[: synced.index(f"checkpoints/.partial_{number:06d}")])

    def files(*steps: int) -> list[str]:
        of_steps = [f"{step:06d}-0" for step in steps]
        named = {"critiques": "parquet", "responses": "parquet", "samples": "jsonl"}
        made = [f"{folder}/{name}.{kind}" for folder, kind in named.items() for name in of_steps]
        return sorted([".", "metrics.jsonl", *named, *made])

    def without_state(paths: list[str]) -> list[str]:
        return [path for path in paths if not path.startswith("checkpoints")]

    assert without_state(step(1)) == files(1)
    assert without_state(step(2)) == files(2)
    crew._parts.tracker.rewind(1)
    assert without_state(step(2)) == files(2)


class Writes:
    """Trainer ranks that write a model of one file, and may find the disk full half way."""

    full = False
    text = ""

    async def save_pretrained(self, path: Path) -> None:
        path.mkdir(parents=True)
        (path / "config.json").write_text(self.text)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        (path / "model.safetensors").write_text(self.text)


def test_models_are_whole_or_as_they_were(tmp_path: Path) -> None:
    crew: Any = Crew(tmp_path)
    crew._parts.trainers = writes = Writes()

    def there(folder: str) -> list[str]:
        return [f"{path.name} {path.read_text()}" for path in sorted((tmp_path / folder).iterdir())]

    for writes.text in ("old", "new"):
        asyncio.run(crew.export_policy())
    asyncio.run(crew.export(20))
    writes.full, writes.text = True, "torn"
    for export in (crew.export_policy, lambda: crew.export(20), lambda: crew.export(40)):
        with pytest.raises(OSError, match="No space left on device"):
            asyncio.run(export())
    whole = ["config.json new", "model.safetensors new"]
    assert there("policy") == there("exports/step_000020") == whole
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert names == {"policy", "exports", "exports/step_000020"}


def test_an_evaluation_says_how_sure_it_is() -> None:
    """avg@2 is 1/2 over ten problems, of which six have a right answer; one more cannot be verified."""
    right, wrong = ({"responses": 1.0, "verified": 1.0, "correct": c} for c in (1.0, 0.0))
    lost = {"responses": 1.0, "unverifiable": 1.0}
    problems = [[right, right]] * 4 + [[right, wrong]] * 2 + [[wrong, wrong]] * 4 + [[lost, lost]]
    made = over_problems(problems, seed=1)
    assert made["outcome/pass_at_k"] == 0.6
    assert 0.15 < made["outcome/accuracy_low"] < 0.3 and 0.7 < made["outcome/accuracy_high"] < 0.85
    assert over_problems([[right], [wrong]], seed=1).keys() == {"outcome/accuracy_low", "outcome/accuracy_high"}
    assert over_problems([[lost]], seed=1) == {}
