"""How long a run takes, who waits, how GPUs are best split, what is downloaded and what a checkpoint takes: estimates.

From the shapes of the models and a table of hardware, or at the speeds of a run that was (`profile`). Leaves out what
fits (plan, memory) and the table (hardware).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from capo_ray.config.blocks import Rollout
from capo_ray.config.critic import Voter
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model, Shape
from capo_ray.config.run import Config
from capo_ray.models.find import folder_here, is_hub_id
from capo_ray.planning import hardware as hw
from capo_ray.planning.bundles import critics_here, needs, seats
from capo_ray.planning.machine import shape_of
from capo_ray.planning.memory import (
    BYTES,
    GIB,
    EngineMemory,
    checkpoint_gib,
    engines_memory,
    learning,
    weight_bytes,
)
from capo_ray.planning.plan import plan_for
from capo_ray.planning.quantized import IN_FILES, quantization_of
from capo_ray.planning.turns import turns_of

PROFILED = (
    "speed/rollout_tokens_per_s",
    "speed/critic_tokens_per_s",
    "response/mean_tokens",
    "critic/mean_tokens",
    "seconds/update",
    "seconds/sync",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one step."""

    rollout: float
    critic: float
    update: float
    sync: float
    overlapped: bool
    """The next batch is sampled while the policy learns."""
    turns: bool
    """Nobody works while another does."""
    switch: float = 0.0
    """Falling asleep and waking."""

    @property
    def step(self) -> float:
        """Critics judge what is sampled meanwhile, so the slower of the two counts; in turns all do."""
        if self.turns:
            return self.rollout + self.critic + self.update + self.sync + self.switch
        sampling = max(self.rollout, self.critic)
        return (max(sampling, self.update) if self.overlapped else sampling + self.update) + self.sync

    @property
    def stages(self) -> dict[str, float]:
        made = {"rollout": self.rollout, "critic": self.critic, "update": self.update, "sync": self.sync}
        made["sleep and wake"] = self.switch
        return {name: seconds for name, seconds in made.items() if seconds}


@dataclass(frozen=True, slots=True)
class Profile:
    """Medians over the steps of a run, and its trainer ranks."""

    numbers: Mapping[str, float]
    ranks: int


def read_profile(run_dir: str) -> Profile:
    """Raises ConfigError where `run_dir` holds no run that has got through a step."""
    import yaml

    folder = Path(run_dir).expanduser()
    try:
        ranks = int(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]["ranks"])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"profile: {folder} is no run's directory ({type(error).__name__}: {error})") from None
    values = {name: [row[name] for row in rows if isinstance(row.get(name), int | float)] for name in PROFILED}
    numbers = {name: float(median(found)) for name, found in values.items() if found}
    if missing := [name for name in ("speed/rollout_tokens_per_s", "seconds/update") if not numbers.get(name)]:
        raise ConfigError(f"profile: no step of {folder} has {missing[0]}; name a run that got through one")
    return Profile(numbers, ranks)


def times(config: Config, policy: Shape, critics: Mapping[str, Shape], gpu: hw.Gpu) -> Times:
    """By the table of hardware. `critics`: shapes by their places."""
    responses = config.prompts_per_step * config.responses_per_prompt
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens * hw.RESPONSE_SHARE
    longest = config.rollout.max_response_tokens * hw.LONGEST_SHARE
    parts, engines = config.rollout.tensor_parallel, engines_memory(config, {"policy": policy, **critics}, gpu.gib)
    weights = weight_bytes(policy, config.policy.dtype, quantization_of(config.rollout)) / parts
    per_token, asked = _per_token(policy, config.policy), responses / config.rollout.workers
    at_once = _at_once(config.rollout, engines["rollout"], asked, (prompt + response) * per_token)
    kept = at_once * (prompt + response / 2) * per_token / parts
    token = (weights + kept) / gpu.bytes_per_s / hw.READING + hw.PER_TOKEN_S
    work = 4 if config.trainer.lora else 6  # weights that stay have no gradient
    trained = work * policy.parameters * responses * (prompt + response)
    scorings = (config.trainer.optimisation_passes > 1) + (config.algorithm.kl_weight > 0)
    passes = config.trainer.optimisation_passes + scorings * 2 / work
    turns, shapes = turns_of(config, {"policy": policy, **critics}, gpu.gib), {"rollout": policy, **critics}
    return Times(
        rollout=max(longest, asked / at_once * response) * token,
        critic=max(
            (
                _judging(config, voter, shapes[place], gpu, prompt + response, engines[place])
                for place, voter in _judges(config)
            ),
            default=0.0,
        ),
        update=trained * passes / (config.trainer.ranks * gpu.flops * hw.TRAINING),
        sync=1.0 + sent(config, policy) * BYTES[config.policy.dtype] / hw.SYNC_BYTES_PER_S,
        overlapped=config.algorithm.max_staleness > 0,
        turns=config.cluster.sharing == "turns",
        switch=turns.switch_s if turns else 0.0,
    )


def sent(config: Config, policy: Shape) -> float:
    """Numbers of a sync."""
    return learning(config.trainer, policy) if config.cluster.lora_sync == "adapter" else policy.parameters


def _at_once(engine: Rollout | Voter, memory: EngineMemory, asked: float, each: float) -> float:
    """Of so many requests to an engine those that run together, when each has so many bytes in the KV cache."""
    room = memory.gib.get("KV cache", 0.0) * GIB * engine.tensor_parallel / each
    return max(1.0, min(engine.max_sequences, asked, room))


def _judges(config: Config) -> list[tuple[str, Voter]]:
    """Critics on engines of this run, with the places of these; the policy's base has those that sample."""
    if (base := config.base_critic) is None:
        return critics_here(config)
    sampling = config.rollout
    engines = {name: getattr(sampling, name) for name in ("workers", "tensor_parallel", "engine")}
    at_once = min(base.max_sequences, sampling.max_sequences)
    return [("rollout", base.model_copy(update={**engines, "model": config.policy, "max_sequences": at_once}))]


def _judging(config: Config, voter: Voter, shape: Shape, gpu: hw.Gpu, read: float, memory: EngineMemory) -> float:
    """Seconds in which one critic writes its share of the critiques of a step."""
    assert config.critic is not None and voter.model is not None
    responses = config.prompts_per_step * config.responses_per_prompt
    judges = sum(not other.same_critic for other in config.critic.voters)
    critiques = responses * config.critic.critiques / judges
    written = config.critic.max_critique_tokens * hw.CRITIQUE_SHARE
    parts, engines = voter.tensor_parallel, voter.workers
    faster = gpu.eight_bit if "8" in (quantization_of(voter) or "") else 1.0
    flops = parts * gpu.flops * faster * hw.PREFILL
    reading = 2 * shape.parameters * responses * 2 * read / (engines * flops)  # the instructions are as long again
    per_token = _per_token(shape, voter.model)
    batch = _at_once(voter, memory, critiques / engines, (read + written) * per_token)
    weights = weight_bytes(shape, voter.model.dtype, quantization_of(voter))
    kept = batch * (written / 2 + read) * per_token
    moving = (weights + kept) / parts / gpu.bytes_per_s / hw.READING
    token = max(moving, 2 * shape.parameters * batch / flops) + hw.PER_TOKEN_S
    return reading + critiques / engines / batch * written * token


def _per_token(shape: Shape, model: Model) -> float:
    """Bytes in the KV cache."""
    return 2 * shape.layers * shape.key_value_size * BYTES[model.dtype]


def measured(config: Config, profile: Profile) -> Times:
    """At the speeds of a run: engines are as fast as its own, an update as much faster as there are more ranks."""
    numbers, responses = profile.numbers, config.prompts_per_step * config.responses_per_prompt
    sampled = responses * numbers.get("response/mean_tokens", config.rollout.max_response_tokens)
    critic, engines = 0.0, sum(voter.workers for _, voter in _judges(config))
    if config.critic and engines and (speed := numbers.get("speed/critic_tokens_per_s")):
        written = numbers.get("critic/mean_tokens", config.critic.max_critique_tokens)
        critic = responses * config.critic.critiques * written / (engines * speed)
    return Times(
        rollout=sampled / (config.rollout.workers * numbers["speed/rollout_tokens_per_s"]),
        critic=critic,
        update=numbers["seconds/update"] * profile.ranks / config.trainer.ranks,
        sync=numbers.get("seconds/sync", 0.0),
        overlapped=config.algorithm.max_staleness > 0,
        turns=config.cluster.sharing == "turns",
    )


def splits(config: Config, gpus: int, gpu_gib: float, shapes: Mapping[str, Shape | None]) -> Iterator[Config]:
    """The run on at most `gpus` GPUs in every way that the plan finds no fault with: other numbers of rollout workers,
    engines of its first critic and trainer ranks."""
    sharing, judges = config.cluster.sharing, critics_here(config)
    each, parts = judges[0][1].tensor_parallel if judges else 0, config.rollout.tensor_parallel
    others = sum(voter.workers * voter.tensor_parallel for _, voter in judges[1:])
    for engines in range(1, gpus // each + 1) if judges else (0,):
        beside, least = (0, engines * each + others) if sharing == "turns" else (engines * each, 1)
        for ranks in range(max(1, least), gpus - beside + 1):
            if sharing != "apart" and ranks % parts:
                continue
            left = (gpus - beside - ranks) // parts
            for workers in range(1, left + 1) if sharing == "apart" else (ranks // parts,):
                update: dict[str, Any] = {
                    "rollout": config.rollout.model_copy(update={"workers": workers}),
                    "trainer": config.trainer.model_copy(update={"ranks": ranks}),
                }
                if config.critic and judges and judges[0][0] == "critic":
                    update["critic"] = config.critic.model_copy(update={"workers": engines})
                made = config.model_copy(update=update)
                if needs(seats(made)[0]).get("GPU", 0) <= gpus and not plan_for(made, shapes, gpu_gib=gpu_gib).faults:
                    yield made


def estimate(config: Config, *, gpu: str = "h100", gpus: int | None = None, profile: str | None = None) -> str:
    """What is printed of it. Raises ConfigError where the GPU is not in the table."""
    if gpu not in hw.GPUS:
        raise ConfigError(f"gpu: {gpu!r} is not in the table of hardware; there are {', '.join(hw.GPUS)}")
    shapes = {"policy": shape_of(config.policy)}
    shapes |= {place: shape_of(voter.model) for place, voter in critics_here(config) if voter.model}
    storage = [*downloads(config, shapes), disk(config, shapes["policy"])]
    if profile is None and (config.cluster.device == "cpu" or None in shapes.values()):
        why = "it runs on CPU" if config.cluster.device == "cpu" else "the shape of a model is not known here"
        return "\n".join([f"estimates: none of time, since {why}; profile=RUN_DIR takes a run's own speeds", *storage])
    run = read_profile(profile) if profile else None

    def of(one: Config) -> Times:
        if run is not None:
            return measured(one, run)
        known = {place: shape for place, shape in shapes.items() if shape is not None}
        return times(one, known["policy"], known, hw.GPUS[gpu])

    asked = needs(seats(config)[0]).get("GPU", 0)
    source = f"at the speeds of {profile}" if profile else f"on {hw.GPUS[gpu].name}, by a table; nothing was measured"
    lines = [f"estimates, {source}", *_times(config, of(config), asked), *([] if profile else _assumptions(config))]
    if config.cluster.device == "gpu":
        there = gpus or round(asked)
        found = list(splits(config, there, hw.GPUS[gpu].gib, shapes))
        lines.append(_best(min(found, key=lambda one: of(one).step), of, there) if found else
                     f"  best split of {there} GPUs: none fits")  # fmt: skip
    return "\n".join([*lines, *storage])


def _times(config: Config, one: Times, gpus: float) -> list[str]:
    hours = config.steps * one.step / 3600
    busy = {name: one.stages[stage] / one.step for name, stage in
            (("rollout workers", "rollout"), ("critics", "critic"), ("trainer ranks", "update"))
            if stage in one.stages}  # fmt: skip
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in one.stages.items())
    waits = ", ".join(f"{name} {1 - share:.0%}" for name, share in busy.items())
    return [
        f"  a step                  {one.step:.0f} s: {stages}"
        + ("; sampling and judging overlap" if one.critic and not one.turns else "")
        + ("; the update overlaps with them" if one.overlapped else ""),
        f"  the run                 {hours:.0f} hours" + (f", {hours * gpus:.0f} GPU hours" if gpus else ""),
        f"  who waits               {waits} of a step; the most: {min(busy, key=lambda name: busy[name])}",
    ]


def _assumptions(config: Config) -> list[str]:
    rollout, critic = config.rollout, config.critic
    lengths = f"responses of {rollout.max_response_tokens * hw.RESPONSE_SHARE:.0f} tokens on average"
    lengths += f" and {rollout.max_response_tokens * hw.LONGEST_SHARE:.0f} at most"
    if critic:
        lengths += f", critiques of {critic.max_critique_tokens * hw.CRITIQUE_SHARE:.0f}"
    made = [
        f"  assumed                 {lengths}; {hw.TRAINING:.0%} of the peak in training, {hw.PREFILL:.0%} in",
        f"                          reading prompts, {hw.READING:.0%} of the memory's speed in sampling; evaluations"
        " and critics on servers apart",
    ]
    if config.cluster.sharing == "turns":
        made.append(
            f"                          {hw.HOST_BYTES_PER_S / 1e9:.0f} GB/s between a GPU and its host, and "
            f"{hw.SWITCH_S:g} s for each that falls asleep or wakes"
        )
    return made


def _best(best: Config, of: Any, gpus: int) -> str:
    judges = [f"{voter.workers} critic engines of {voter.tensor_parallel}" for _, voter in critics_here(best)]
    parts = [f"{best.rollout.workers} rollout workers", *judges, f"{best.trainer.ranks} trainer ranks"]
    return f"  {f'best split of {gpus} GPUs':<24}{', '.join(parts)}: a step of {of(best).step:.0f} s"


def downloads(config: Config, shapes: Mapping[str, Shape | None]) -> list[str]:
    """A line for each model and data set that is not here."""
    models: list[tuple[str, Model, str | None]] = [("policy", config.policy, None)]
    models += [(p, voter.model, quantization_of(voter)) for p, voter in critics_here(config) if voter.model is not None]
    wanted = []
    for place, model, quantization in models:
        if is_hub_id(model.path) and not folder_here(model.path).is_dir():
            in_files = quantization if quantization in IN_FILES else None
            shape = shapes.get(place)
            size = f" ({weight_bytes(shape, 'bfloat16', in_files) / GIB:.0f} GiB)" if shape else ""
            wanted.append(f"{model.path}{size}")
    sources = [config.data, *([config.data.evaluation] if config.data.evaluation else [])]
    wanted += [str(s.path) for s in sources if s.path and is_hub_id(s.path) and not Path(s.path).exists()]
    return [f"  downloads               {', '.join(dict.fromkeys(wanted)) or 'nothing'}"]


def disk(config: Config, policy: Shape | None) -> str:
    """One checkpoint more than is kept is there while it is written, and so are the policy at the end and exports."""
    if policy is None:
        return "  disk                    not known: the policy's shape is not"
    width = BYTES[config.policy.dtype]
    one, last = checkpoint_gib(config, policy), learning(config.trainer, policy) * width / GIB
    most = one * config.checkpoints_at_once + last * config.models_written
    return f"  disk                    {one:.1f} GiB a checkpoint, at most {most:.1f} with those kept and all models"
