"""The running system on Ray, as the driver's loop sees it (training.driver.Crew).

Ties the pools, the aggregator shards and the trainer group together, and keeps nobody sampling while weights move.
Leaves out how the parts are made (training.build) and in which order they are used (training.driver).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from capo_ray.cluster import nonfinite
from capo_ray.cluster.acceptance import Acceptance
from capo_ray.cluster.ahead import ScoreAhead
from capo_ray.cluster.arrivals import Errand
from capo_ray.cluster.evaluation import measured
from capo_ray.cluster.faults import cause_of, is_loss
from capo_ray.cluster.gate import Gate
from capo_ray.cluster.parts import CrewParts, CrewSettings, spread
from capo_ray.cluster.patience import when_up
from capo_ray.cluster.rollout_pool import RolloutPool
from capo_ray.cluster.speeds import Speeds
from capo_ray.critics.budget import Sampled
from capo_ray.critics.canaries import Canary
from capo_ray.critics.failures import FailureLimit
from capo_ray.files.checkpoint import check_saved, read_state
from capo_ray.files.durable import replace_folder, written_beside
from capo_ray.records import report
from capo_ray.seeds import seed_of
from capo_ray.types import Batch, GroupSummary, JsonDict, Metrics, Prompt, Update

log = logging.getLogger(__name__)


class RayCrew:
    """See training.driver.Crew."""

    def __init__(self, parts: CrewParts, settings: CrewSettings) -> None:
        self._parts = parts
        self._settings = settings
        self._gate = Gate()
        self._rollouts = RolloutPool(parts.workers, self._gate, revive=self._revive)
        self._acceptance = Acceptance(
            parts.aggregators,
            FailureLimit(max_share=settings.max_failed_share, prompts=settings.failure_prompts),
            max_dropped_share=settings.max_dropped_share,
        )
        self._trained = 0
        """Version of the weights that the trainer holds once it has done what it was told."""
        self._speeds = Speeds(parts)
        self._turns = parts.turns

    async def restore(self) -> int:
        await self._speeds.take()  # engines may have worked for another run before
        checkpoint = self._parts.checkpoints.newest()
        if checkpoint is None:
            self._parts.tracker.rewind(0)
            return 0
        state = read_state(checkpoint)
        step = int(state["step"])
        if self._parts.budget is not None:
            self._parts.budget.restore(state.get("critic_costs", {}))
        await self._parts.trainers.restore(checkpoint / "trainer")
        self._parts.tracker.rewind(step)
        log.info("resumed from %s", checkpoint)
        return step

    async def collect(self, step: int) -> Batch:
        start = monotonic()
        prompts = self._parts.prompts_for(step, 0)
        canaries = self._parts.canaries_for(step, prompts)
        groups = await self._groups(prompts, step, self._settings.samples_per_step, canaries=canaries)
        spare: list[GroupSummary] = []
        for attempt in range(1, self._settings.refills + 1):
            silent = [place for place, group in enumerate(groups) if not group.has_credit]
            if not silent:
                break
            prompts = self._parts.prompts_for(step, attempt)[: len(silent)]
            fresh = await self._groups(prompts, step, 0, spent=report.judging_tokens((*groups, *spare)))
            for place, group in zip(silent, fresh, strict=True):
                if group.has_credit:
                    groups[place], group = group, groups[place]
                spare.append(group)
        return Batch(step=step, groups=tuple(groups), spare=tuple(spare), seconds=monotonic() - start)

    def _begin_canaries(self, canaries: Sequence[Canary]) -> list[Any]:
        """Spread them over the shards, which say no more than that they have begun."""
        shards = self._parts.aggregators
        shares = [canaries[number :: len(shards)] for number in range(len(shards))]
        return [shard.begin_canaries.remote(share) for shard, share in zip(shards, shares, strict=True) if share]

    async def _groups(
        self,
        prompts: Sequence[Prompt],
        step: int,
        num_samples: int,
        *,
        spent: float = 0.0,
        canaries: Sequence[Canary] = (),
    ) -> list[GroupSummary]:
        """`spent`: critic tokens of the step so far."""
        later = self._parts.budget is not None or self._turns.judges_later
        kind: Literal["score", "verify"] = "verify" if later else "score"
        errand = Errand(kind=kind, seed=self._settings.seed, step=step)
        ahead = ScoreAhead(
            self._parts.score_ahead, prompts, lambda prompt: self._shard(prompt).rollouts.remote(prompt, errand)
        )
        await self._begin_sampling()
        samples = spread(num_samples, len(prompts))
        try:
            if later:
                groups = await self._judged_later(prompts, errand, samples, spent, canaries, ahead)
            else:
                begun = self._begin_canaries(canaries)  # and no wait for them: groups take the gate now
                groups = await self._judged_as_sampled(prompts, errand, samples, ahead)
                await asyncio.gather(*begun)
            await ahead.end()
        finally:
            ahead.leave()
        return groups

    async def _judged_as_sampled(
        self, prompts: Sequence[Prompt], errand: Errand, samples: Sequence[int], ahead: ScoreAhead
    ) -> list[GroupSummary]:
        async with self._turns.kept(), asyncio.TaskGroup() as tasks:
            groups = [
                tasks.create_task(self._group(prompt, errand, kept, ahead))
                for prompt, kept in zip(prompts, samples, strict=True)
            ]
        return [group.result() for group in groups]

    async def _judged_later(
        self,
        prompts: Sequence[Prompt],
        errand: Errand,
        samples: Sequence[int],
        spent: float,
        canaries: Sequence[Canary],
        ahead: ScoreAhead,
    ) -> list[GroupSummary]:
        """Judging waits for the last response: where it has a budget, since which groups are judged is known when the
        answers of all are, and in turns, since critics sleep until then."""
        async with asyncio.TaskGroup() as tasks:
            sampled = [tasks.create_task(self._verified(prompt, errand, ahead)) for prompt in prompts]
        admitted: Sequence[bool] = [True] * len(prompts)
        if self._parts.budget is not None:
            admitted = self._parts.budget.admit(errand.step, [group.result() for group in sampled], spent=spent)
        await self._turns.take("judge")
        async with self._turns.kept():
            await asyncio.gather(*self._begin_canaries(canaries))
            async with asyncio.TaskGroup() as tasks:
                groups = [
                    tasks.create_task(self._judge_group(prompt, errand, kept, judged))
                    for prompt, kept, judged in zip(prompts, samples, admitted, strict=True)
                ]
            if self._turns.judges_later:
                await asyncio.gather(*(shard.canaries_done.remote() for shard in self._parts.aggregators))
        return [group.result() for group in groups]

    async def _verified(self, prompt: Prompt, errand: Errand, ahead: ScoreAhead) -> tuple[Sampled, ...]:
        """Sample and verify the group of `prompt`."""
        read = await self._sample(prompt, errand, ahead)
        return await self._shard(prompt).sampled.remote(prompt, errand, read)

    async def _judge_group(self, prompt: Prompt, errand: Errand, num_samples: int, judged: bool) -> GroupSummary:
        shard = self._shard(prompt)
        if judged:
            await shard.judge_group.remote(prompt, errand.seed, errand.step)
        else:
            await shard.leave_group.remote(prompt)
        summary = await shard.close_group.remote(prompt, errand, num_samples)
        if self._parts.budget is None:
            return summary
        left = 0.0 if judged else summary.tally["responses"]
        return replace(summary, tally=summary.tally | {"over_budget": left})

    async def _group(self, prompt: Prompt, errand: Errand, num_samples: int, ahead: ScoreAhead) -> GroupSummary:
        read = await self._sample(prompt, errand, ahead)
        return await self._shard(prompt).close_group.remote(prompt, errand, num_samples, read)

    async def _sample(self, prompt: Prompt, errand: Errand, ahead: ScoreAhead) -> Any:
        """Have the group of `prompt` sampled; what its shard does about it goes on. Returns as `ahead.sampled`."""
        responses = range(self._settings.responses_per_prompt)
        seeds = {index: seed_of(errand.seed, errand.step - 1, prompt.id, index) for index in responses}
        await self._sample_for(prompt, seeds, errand)
        return ahead.sampled(prompt)

    async def _sample_for(self, prompt: Prompt, seeds: Mapping[int, int], errand: Errand) -> None:
        shard, sampling = self._shard(prompt), self._settings.sampling
        await self._rollouts.generate(
            lambda worker, some: worker.sample_for.remote(shard, errand, prompt, sampling, some),
            seeds,
            lambda: shard.held.remote(prompt, errand),
            max_tokens=sampling.max_tokens,
        )

    def _shard(self, prompt: Prompt) -> Any:
        shards = self._parts.aggregators
        return shards[seed_of(prompt.id) % len(shards)]

    async def _write_samples(self, batch: Batch) -> None:
        for shard in self._parts.aggregators:
            await shard.write_samples.remote(batch.step, [group.prompt_id for group in batch.spare])

    async def update(self, batch: Batch) -> Update:
        """Where this fails, what was sampled and judged is written down: nothing else of the step will be."""
        try:
            await self._acceptance.look(batch)
            await self._turns.take("train")
            self._trained = batch.step
            folder = nonfinite.folder_of(self._parts.run_dir, batch.step)
            update = await self._parts.trainers.update(batch, keep_in=folder)
        except Exception as error:
            if not is_loss(error):
                await self._keep_samples(batch)
            raise
        if update.metrics["nonfinite_steps"]:
            await asyncio.to_thread(self._describe, folder, batch, update)
        return update

    async def _keep_samples(self, batch: Batch) -> None:
        """As far as that can be done: an error is on its way, and is what is to be told."""
        try:
            await self._write_samples(batch)
        except Exception as error:
            log.warning("the samples of step %d cannot be written: %s", batch.step, cause_of(error))

    def _describe(self, folder: Path, batch: Batch, update: Update) -> None:
        """Beside the shares of its ranks, see nonfinite.Kept."""
        newest, ranks = self._parts.checkpoints.newest(), self._parts.trainers.ranks
        checkpoint = newest.name if newest else None
        nonfinite.write_update(folder, step=batch.step, ranks=ranks, checkpoint=checkpoint, metrics=update.metrics)

    async def sync(self, version: int) -> None:
        async with self._gate.exclusive():
            await self._turns.take("sync")
            await self._rollouts.ready_for_weights()
            checksum = await self._parts.trainers.publish_weights(version)
            log.info("every rollout worker confirms the weights of version %d, checksum %s", version, checksum)
            self._trained = version

    async def _begin_sampling(self) -> None:
        """The rollout workers are awake, with the trainer's weights."""
        while True:
            if self._turns.needs_sync():
                await self.sync(self._trained)
            await self._turns.take("sample")
            if not self._turns.needs_sync():  # nobody had to sleep again for a worker that was started again just now
                return

    async def _revive(self) -> None:
        """Wait until Ray has started dead workers again and give all of them the trainer's weights.

        They queue behind an update that is running, so these may be newer than those of the last sync; never older.
        """
        await asyncio.gather(*(when_up(worker, "a rollout worker to start again") for worker in self._parts.workers))
        sampling = self._turns.phase == "sample"
        while True:
            await self._turns.take("sync")
            await self._parts.trainers.connect(self._parts.workers)
            await self._parts.trainers.publish_weights(self._trained)
            if not sampling:
                return
            await self._turns.take("sample")
            if not self._turns.needs_sync():
                return

    async def evaluate(self, step: int) -> None:
        if not self._parts.held_out or self._parts.tracker.has_evaluation(step):
            return
        await self._begin_sampling()
        settings = self._settings
        metrics = await measured(
            self._parts.held_out,
            self._shard,
            self._sample_for,
            seed=settings.seed,
            step=step,
            responses=settings.evaluation_responses,
        )
        self._parts.tracker.evaluation(step, metrics)

    async def record(self, batch: Batch, update: Update, seconds: Metrics) -> None:
        budget = self._parts.budget
        await self._write_samples(batch)
        metrics = report.of_step(
            batch,
            update,
            shards=await asyncio.gather(*(shard.metrics.remote() for shard in self._parts.aggregators)),
            speeds=await self._speeds.take(),
            seconds=seconds,
            rollout_deaths=self._rollouts.num_deaths,
            critic_tokens=None if budget is None else budget.tokens_per_step,
            refills=self._settings.refills > 0,
        )
        if budget is not None:
            budget.record(batch.step, report.tally_of(batch))
        self._parts.tracker.step(batch.step, metrics | self._turns.take_seconds())

    async def save(self, step: int) -> None:
        await self._turns.with_trainer()
        partial = self._parts.checkpoints.begin(step)
        await self._parts.trainers.save(partial / "trainer")
        check_saved(partial / "trainer", step)
        state: JsonDict = {"step": step, **self._parts.tracker.state(), "score": self._parts.tracker.score(step)}
        if self._parts.budget is not None:
            state["critic_costs"] = self._parts.budget.state()
        await asyncio.to_thread(self._parts.tracker.sync, step)
        await asyncio.to_thread(self._parts.checkpoints.commit, partial, state)

    async def export(self, step: int) -> None:
        await self._export(self._parts.run_dir / "exports" / f"step_{step:06d}")

    async def export_policy(self) -> None:
        """Write the policy at the end."""
        await self._export(self._parts.run_dir / "policy")

    async def _export(self, folder: Path) -> None:
        """A folder that transformers and vLLM load: whole, or as it was before."""
        await self._turns.with_trainer()
        with written_beside(folder) as partial:
            await self._parts.trainers.save_pretrained(partial)
            await asyncio.to_thread(replace_folder, partial, folder)
