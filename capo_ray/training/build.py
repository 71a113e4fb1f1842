"""From a Config to the running crew: what is needed is found and checked, then every part is made and connected.

The one place that knows all parts, and where engines are imported, each inside the process that runs it. Everything
that can be wrong without a GPU is checked in `prepare`, before Ray starts. Leaves out how critics are reached and asked
(build_critics) and the loop (driver).
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from capo_ray.config.run import Config
from capo_ray.critics.prompt import find_template
from capo_ray.engines.options import check_options
from capo_ray.files.checkpoint import Checkpoints, check_trainer
from capo_ray.models.find import ModelFiles, check_trained, find_model
from capo_ray.planning.bundles import Role, critics_here
from capo_ray.planning.plan import optimizer_steps_per_batch
from capo_ray.training.build_critics import check_servers, critic_budget, make_critics
from capo_ray.training.settings import (
    critic_engine_settings,
    critic_settings,
    rollout_settings,
    sampling_of,
    scheme_of,
)
from capo_ray.types import Prompt

if TYPE_CHECKING:
    from capo_ray.cluster.crew import RayCrew
    from capo_ray.cluster.parts import CrewSettings
    from capo_ray.cluster.placement import Lend, Make
    from capo_ray.cluster.tracing import TracedCrew
    from capo_ray.credit.template import PromptTemplate
    from capo_ray.critics.canaries import Canary
    from capo_ray.engines.vllm_settings import VllmSettings
    from capo_ray.records.trace import TraceFile
    from capo_ray.records.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was found and checked before anything was started."""

    policy: ModelFiles
    critics: Sequence[ModelFiles]
    """Of the critics that this run starts engines for."""
    template: PromptTemplate | None
    """What critics are asked with; None where there are none."""
    prompts_for: Callable[[int, int], Sequence[Prompt]]
    held_out: Sequence[Prompt]
    canaries_for: Callable[[int, Sequence[Prompt]], Sequence[Canary]]


def prepare(config: Config, run_dir: Path) -> Prepared:
    """Find models, data and the checkpoint to go on from, and check that they fit together. Raises ConfigError,
    DataError or RunDirError."""
    from capo_ray.critics.canaries import CanarySet
    from capo_ray.data.prompts import load_prompts

    check_options(config)
    checkpoint = Checkpoints(run_dir, keep=config.keep_checkpoints).settle()
    if checkpoint is not None:
        check_trainer(checkpoint / "trainer")
    template = find_template(config.critic) if config.critic else None
    canaries = CanarySet.of(config)
    check_servers(config)
    policy = find_model(config.policy, "policy", run_dir, seed=config.seed)
    check_trained(policy.folder, "policy", longest=config.longest_in_a_row, lora=config.trainer.lora)
    if checkpoint is not None:
        policy.check_continues(checkpoint / "trainer", config.trainer.lora)
    lengths = {
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "rollout.max_response_tokens": config.rollout.max_response_tokens,
    }
    policy.check_window("the policy", lengths)
    prompts = load_prompts(config, policy.encoder(config.policy.system_prompt, config.policy.chat_template))
    # The critics last: theirs are the large downloads.
    critics = [
        find_model(voter.model, f"{place}.model", run_dir, seed=config.seed + 1 + n)
        for n, (place, voter) in enumerate(critics_here(config))
        if voter.model
    ]
    if config.critic:
        for critic in [*critics, policy] if config.base_critic else critics:
            critic.check_window(
                "the critic", lengths | {"critic.max_critique_tokens": config.critic.max_critique_tokens}
            )
    return Prepared(
        policy=policy,
        critics=critics,
        template=template,
        prompts_for=prompts.for_step,
        held_out=prompts.held_out,
        canaries_for=canaries.for_step,
    )


# ---- factories: each runs in the process of its actor ----------------------------------------------------------------


def _must_see(folder: Path) -> None:
    """Raises FileNotFoundError: an actor may be on another machine than the one where the folder was found."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the node {socket.gethostname()} does not see {folder}: put run_dir and models on storage that every node "
            "mounts at the same path, for models of the hub by HF_HOME"
        )


def make_rollout(settings: VllmSettings, name: str) -> Any:
    _must_see(Path(settings.model))
    from capo_ray.engines.rollout_vllm import VllmRollout

    return _in_turn(settings, partial(VllmRollout, settings, name=name), name)


def make_critic(settings: VllmSettings, name: str) -> Any:
    _must_see(Path(settings.model))
    from capo_ray.engines.critic_vllm import VllmCritic

    return _in_turn(settings, partial(VllmCritic, settings, name=name), name)


def _in_turn(settings: VllmSettings, open_engine: Callable[[], Any], name: str) -> Any:
    from capo_ray.engines.sleeper import Sleeper

    return Sleeper(open_engine, name) if settings.sleeps else open_engine()


def make_trainer(config: Config, model: str, run_dir: Path | None = None, *, rank: int, host: str, port: int) -> Any:
    """`run_dir`: where it is to write checkpoints, if anywhere."""
    for folder in (Path(model), *([run_dir] if run_dir else [])):
        _must_see(folder)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(
        model,
        trainer=config.trainer,
        algorithm=config.algorithm,
        total_steps=config.steps * optimizer_steps_per_batch(config),
        temperature=config.rollout.temperature,
        rank=rank,
        world_size=config.trainer.ranks,
        device=config.cluster.device,
        dtype=config.policy.dtype,
        seed=config.seed,
        sends=config.cluster.lora_sync if config.trainer.lora else "merged",
    )


def make_sender(config: Config, handles: Sequence[Any], *, engine: Any, rank: int, host: str) -> Any:
    """The end of a weight transfer that belongs to trainer rank `rank` and its `engine`; `host` is rank 0's address."""
    from capo_ray.cluster.weight_line import receivers_of

    receivers = receivers_of(handles, gpus_each=config.rollout.tensor_parallel) if rank == 0 else None
    if config.cluster.weight_transfer == "shm":
        from capo_ray.engines.weights_shm import ShmSender

        return ShmSender(receivers)
    from capo_ray.engines.weights_gpu import GpuSender

    return GpuSender(config.cluster.weight_transfer, receivers, engine.weight_shapes, rank=rank, host=host)


def make_aggregator(
    config: Config,
    template: PromptTemplate | None,
    critics: Sequence[tuple[str, Any]],
    samples: Path,
    *,
    shard: int,
    put: Any,
) -> Any:
    from capo_ray.cluster.aggregator import Aggregator, AggregatorParts
    from capo_ray.credit.steps import delimiter
    from capo_ray.records.ledger import Ledger
    from capo_ray.tasks.registry import task_of

    _must_see(samples.parent)
    task = task_of(config)
    parts = AggregatorParts(
        scheme=scheme_of(config),
        between=delimiter(config.reward.segmenter, config.reward.segmenter_pattern),
        verify=task.verify,
        critics=make_critics(config, template, critics),
        reference=config.critic.reference if config.critic else "none",
        find_truth=task.find_truth,
        close_verifier=task.close,
        samples=samples,
    )
    ledger = None
    if template is not None and config.tracking.ledger:
        sampling = critic_settings(config, template).sampling
        ledger = Ledger(samples.parent, shard=shard, scheme=parts.scheme, sampling=sampling)
    return Aggregator(parts, shard=shard, put=put, ledger=ledger)


# ---- the crew --------------------------------------------------------------------------------------------------------


class ScoredAhead(NamedTuple):
    """Which log-probabilities can be made while critics judge: old ones, and the reference's."""

    old: bool
    reference: bool


def scored_ahead(config: Config) -> ScoredAhead:
    """With batches in flight the trainer is busy, or has other weights by the time of the update; it may sleep while
    critics have their turn; without critics there is nothing to wait for."""
    algorithm = config.algorithm
    idle = config.critic is not None and algorithm.max_staleness == 0 and config.cluster.sharing != "turns"
    several = optimizer_steps_per_batch(config) > config.trainer.optimisation_passes  # the first makes its own
    return ScoredAhead(
        old=idle and algorithm.old_logprobs == "trainer" and several, reference=idle and algorithm.kl_weight > 0
    )


def crew_settings(config: Config) -> CrewSettings:
    from capo_ray.cluster.parts import CrewSettings

    return CrewSettings(
        seed=config.seed,
        responses_per_prompt=config.responses_per_prompt,
        sampling=sampling_of(config),
        max_dropped_share=config.max_dropped_share,
        max_failed_share=config.critic.max_failed_share if config.critic else 1.0,
        failure_prompts=config.critic.failure_prompts if config.critic else 1,
        evaluation_responses=config.data.evaluation_responses,
        refills=config.algorithm.refills,
        samples_per_step=config.tracking.samples_per_step,
    )


def engines_of(config: Config, found: Prepared) -> dict[Role, Make]:
    """What the actors of the engines are made with."""
    sleeps = config.cluster.sharing == "turns"
    sampling = replace(rollout_settings(config, found.policy), sleeps=sleeps)
    judging = [
        replace(critic_engine_settings(config, voter, files), sleeps=sleeps)
        for (_, voter), files in zip(critics_here(config), found.critics, strict=True)
        for _ in range(voter.workers)
    ]
    return {
        "rollout": lambda seat: (partial(make_rollout, sampling, seat.name),),
        "critic": lambda seat: (partial(make_critic, judging[seat.number], seat.name),),
    }


@asynccontextmanager
async def running_crew(
    config: Config,
    found: Prepared,
    run_dir: Path,
    tracker: Tracker,
    lend: Lend | None = None,
    trace: TraceFile | None = None,
) -> AsyncIterator[RayCrew | TracedCrew]:
    """Start every actor (inside a Ray session), wait until all are ready, and stop them at the end; but engines that
    `lend` has for the run, which stay there. With tracking.trace what they do goes to `trace`."""
    from capo_ray.cluster.crew import RayCrew
    from capo_ray.cluster.parts import CrewParts
    from capo_ray.cluster.placement import Team
    from capo_ray.cluster.pulse import watching
    from capo_ray.cluster.tracing import TracedCrew
    from capo_ray.cluster.trainer_group import TrainerGroup
    from capo_ray.cluster.turns import start_all, turns_for
    from capo_ray.credit.advantage import algorithm_of

    make = engines_of(config, found)
    async with (
        lend(config, make) if lend else nullcontext(()) as ready,
        Team(config, run_dir.name, ready=ready) as team,
    ):
        engine = partial(make_trainer, config, str(found.policy.folder), run_dir)
        ranks = team.hire("trainer", lambda seat: (engine, partial(make_sender, config), seat.number))
        rollouts, critics = (team.hire(role, made) for role, made in make.items())
        trainers = TrainerGroup(
            list(ranks.values()),
            tokens_per_micro_batch=config.trainer.tokens_per_micro_batch,
            responses_per_update=config.trainer.responses_per_update,
            packing=config.trainer.packing,
            aggregation=config.algorithm.aggregation,
            max_response_tokens=config.rollout.max_response_tokens,
            over_batch=algorithm_of(config.algorithm.advantage).over_batch,
            old_ahead=(ahead := scored_ahead(config)).old,
        )
        judges = rollouts if config.base_critic else critics
        shard = partial(make_aggregator, config, found.template, list(judges.items()), run_dir / "samples")
        aggregators = team.hire("aggregator", lambda seat: (shard, seat.number))
        await start_all(config, team, trainers)
        await trainers.connect(list(rollouts.values()))
        parts = CrewParts(
            workers=list(rollouts.values()),
            critics=list(judges.values()),
            aggregators=list(aggregators.values()),
            trainers=trainers,
            score_ahead=trainers.score if any(ahead) else None,
            tracker=tracker,
            checkpoints=Checkpoints(run_dir, keep=config.keep_checkpoints, keep_every=config.keep_every),
            prompts_for=found.prompts_for,
            held_out=found.held_out,
            canaries_for=found.canaries_for,
            budget=critic_budget(config),
            run_dir=run_dir,
            turns=turns_for(config, rollouts, critics, trainers),
        )
        async with watching(team.actors, silence_s=config.cluster.silence_s, hung=run_dir / "hung"):
            crew = RayCrew(parts, crew_settings(config))
            yield crew if trace is None else TracedCrew(crew, team.actors, trace)
