"""What a run asks of machines, worked out before anything starts: processes, bundles, memory, and the derived numbers.

Pure arithmetic over a Config and the shapes of its models; the memory figures are estimates, good to about a fifth.
`describe` is what `dry_run=true` prints, `refuse_unfit` ends a run that this machine cannot hold with one message.
Leaves out asking Ray for anything (cluster.placement) and looking at the machine (machine).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Shape
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role, critics_here, misfit, needs, seats, shortages
from capo_ray.planning.machine import Machine, shape_of, this_machine, why_silent
from capo_ray.planning.memory import asleep_gib, engines_memory, in_words, rank_of, trainer_memory, ways_to_save
from capo_ray.planning.quantized import quantization_faults
from capo_ray.planning.turns import Turns, lines_of, turns_of

ASSUMED_GPU_GIB = 79.6
"""Memory of a GPU where none can be asked: what nvidia-smi says of an H100 of 80 GB."""
RAY_CPU_GIB = 1.2
"""Ray's own processes, the driver and the aggregators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """The processes of one role."""

    role: Role
    processes: int
    cpus_each: float
    gpus_each: int
    memory: dict[str, float]
    """GiB by purpose: per GPU of a process on GPU, per process on CPU. Empty where the model's shape is unknown."""
    note: str = ""

    @property
    def total_gib(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one run needs."""

    name: str
    device: Literal["cpu", "gpu"]
    roles: tuple[RolePlan, ...]
    bundles: tuple[dict[str, float], ...]
    numbers: dict[str, int]
    gpu_gib: float
    """Memory of a GPU that the figures are for."""
    shared_gpus: bool
    """Rollout workers have the GPUs of trainer ranks, and all of these are awake."""
    turns: Turns | None
    """Of all roles on all GPUs."""
    memory_gib: float
    """Memory of all processes together; on GPU, where that is not estimated, what they have off their GPUs: the
    trainer's `offload`, and what is put aside by those who sleep."""
    faults: tuple[str, ...] = ()
    """What can run nowhere, whatever the number of machines."""

    def needs(self, resource: str) -> float:
        return needs(self.bundles).get(resource, 0.0)

    @property
    def memory_words(self) -> str:
        off = " for what is off the GPUs" if self.device == "gpu" else ""
        return f"about {self.memory_gib:.1f} GiB of memory{off}"


def optimizer_steps_per_batch(config: Config) -> int:
    """Optimizer steps on one rollout batch."""
    responses = config.prompts_per_step * config.responses_per_prompt
    return -(-responses // (config.trainer.responses_per_update or responses)) * config.trainer.optimisation_passes


def derived_numbers(config: Config) -> dict[str, int]:
    """What follows from the configuration and is easily got wrong by hand; token numbers are upper bounds."""
    responses = config.prompts_per_step * config.responses_per_prompt
    critiques = responses * config.critic.critiques if config.critic else 0
    per_batch = optimizer_steps_per_batch(config)
    return {
        "prompts in the run": config.steps * config.prompts_per_step,
        "responses per step": responses,
        "critiques per step": critiques,
        "sampled tokens per step, at most": responses * config.rollout.max_response_tokens,
        "critique tokens per step, at most": critiques * (config.critic.max_critique_tokens if config.critic else 0),
        "optimizer steps per step": per_batch,
        "responses per optimizer step": config.trainer.responses_per_update or responses,
        "optimizer steps in the run": config.steps * per_batch,
        "steps in flight, at most": 1 + config.algorithm.max_staleness,
    }


def plan_for(
    config: Config, shapes: Mapping[str, Shape | None] | None = None, *, gpu_gib: float = ASSUMED_GPU_GIB
) -> Plan:
    """What `config` needs. `shapes`: of "policy" and of each critic's place where the configuration names none."""
    bundles, made = seats(config)
    memory, notes, faults = _memory(config, shapes or {}, gpu_gib)
    roles = []
    left = {role: [seat for seat in made if seat.role == role] for role in get_args(Role)}
    for role, place, processes in _processes(config):
        mine, left[role] = left[role][:processes], left[role][processes:]
        roles.append(
            RolePlan(
                role=role,
                processes=processes,
                cpus_each=mine[0].resources["CPU"],
                gpus_each=mine[0].gpus,
                memory=memory.get(place, {}),
                note=notes.get(place, ""),
            )
        )
    turns = turns_of(config, shapes or {}, gpu_gib)
    if config.cluster.device == "cpu":
        host = RAY_CPU_GIB + (config.cluster.object_store_gib or 0) + sum(r.processes * r.total_gib for r in roles)
    else:
        rank = rank_of(config, config.policy.shape or (shapes or {}).get("policy"))
        host = config.trainer.ranks * sum(rank.host.values()) + sum(turns.aside.values() if turns else ())
    return Plan(
        name=config.name,
        device=config.cluster.device,
        roles=tuple(roles),
        bundles=tuple(bundles),
        numbers=derived_numbers(config),
        gpu_gib=gpu_gib,
        shared_gpus=config.cluster.sharing == "pairs",
        turns=turns,
        memory_gib=host,
        faults=(*faults, *(turns.faults if turns else ())),
    )


def _processes(config: Config) -> list[tuple[Role, str, int]]:
    """(role, place in the configuration, number of processes), in the order of `seats` within a role."""
    return [
        ("rollout", "rollout", config.rollout.workers),
        *(("critic", place, voter.workers) for place, voter in critics_here(config)),
        ("trainer", "trainer", config.trainer.ranks),
        ("aggregator", "aggregator", config.reward.aggregators),
    ]


def _memory(
    config: Config, shapes: Mapping[str, Shape | None], gpu_gib: float
) -> tuple[dict[str, dict[str, float]], dict[str, str], list[str]]:
    """Of each place in the configuration that has processes: GiB by purpose and a note; and what cannot work."""
    policy = config.policy.shape or shapes.get("policy")
    engines = engines_memory(config, shapes, gpu_gib)
    memory = {place: engine.gib for place, engine in engines.items()} | {"trainer": trainer_memory(config, policy)}
    notes = {place: engine.note for place, engine in engines.items()}
    if config.base_critic:
        notes["rollout"] = "; ".join(filter(None, (notes["rollout"], "judges too, without the adapter")))
    faults = [*quantization_faults(config), *(fault for engine in engines.values() for fault in engine.faults)]
    if config.cluster.device == "gpu":
        faults += _trainer_faults(memory["trainer"], config, gpu_gib)
        notes["trainer"] = "; ".join(filter(None, (_host(config, policy), _checkpointing(config, policy, gpu_gib))))
    return memory, notes, faults


def _host(config: Config, policy: Shape | None) -> str:
    off = rank_of(config, policy).host
    return f"in its host's memory {sum(off.values()):.1f} = {in_words(off)}" if off else ""


def _checkpointing(config: Config, policy: Shape | None, gpu_gib: float) -> str:
    """A word where a rank has room for its activations whole, which saves a quarter of its work."""
    if policy is None or not config.trainer.gradient_checkpointing:
        return ""
    whole = config.trainer.model_copy(update={"gradient_checkpointing": False})
    memory = trainer_memory(config.model_copy(update={"trainer": whole}), policy)
    if _trainer_faults(memory, config, gpu_gib):
        return ""
    return f"room without checkpointing ({sum(memory.values()):.0f} GiB): trainer.gradient_checkpointing=false"


def _trainer_faults(memory: Mapping[str, float], config: Config, gpu_gib: float) -> list[str]:
    pairs = config.cluster.sharing == "pairs"
    room, beside = gpu_gib, ""
    if pairs:
        room, beside = gpu_gib * (1 - config.rollout.gpu_memory_share), " beside its rollout worker"
    elif config.cluster.sharing == "turns":
        critics = max((asleep_gib(voter) for _, voter in critics_here(config)), default=0.0)
        room, beside = gpu_gib - asleep_gib(config.rollout) - critics, " beside those asleep"
    total = sum(memory.values())
    if total <= room:
        return []
    ways = ["lower rollout.gpu_memory_share"] if pairs and total < gpu_gib else []
    return [
        f"trainer: a rank needs {total:.0f} GiB ({in_words(memory)}), a GPU has {room:.0f}{beside}; "
        + " or ".join([*ways, *ways_to_save(config, passing="activations" in memory)])
    ]


def fits(plan: Plan, machine: Machine) -> list[str]:
    """What is missing for `plan` on `machine`; empty when it fits."""
    short = shortages(plan.bundles, {"GPU": machine.gpus, "CPU": machine.cpus})
    units = {"GPU": "GPUs", "CPU": "cores"}
    missing = [f"{asked:g} {units[resource]} (here: {there:g})" for resource, (asked, there) in short.items()]
    if not missing and machine.nodes and (reason := misfit(plan.bundles, machine.nodes)):
        missing.append(reason)
    if plan.memory_gib > machine.memory_gib:
        missing.append(f"{plan.memory_words} (here: {machine.memory_gib:.1f})")
    return [*missing, *plan.faults]


def render(plan: Plan) -> str:
    """The plan as a table."""
    per = "process" if plan.device == "cpu" else f"GPU of {plan.gpu_gib:g} GiB"
    memory = f", {plan.memory_words}" if plan.memory_gib else ""
    lines = [
        f"placement of {plan.name} on {plan.device}: {plan.needs('GPU'):g} GPUs, {plan.needs('CPU'):g} cores, "
        f"{len(plan.bundles)} bundles{memory}",
        f"  {'role':<11}{'processes':>9}{'GPUs':>6}{'cores':>7}  GiB per {per} (estimates)",
    ]
    for role in plan.roles:
        memory = f"{role.total_gib:.1f} = {in_words(role.memory)}" if role.memory else "-"
        lines.append(f"  {role.role:<11}{role.processes:>9}{role.gpus_each:>6g}{role.cpus_each:>7g}  {memory}")
        if role.note:
            lines.append(f"  {'':<33}  {role.note}")
    if plan.shared_gpus:
        lines.append("  rollout workers share the GPUs of trainer ranks")
    if plan.turns is not None:
        lines += lines_of(plan.turns)
    lines += [f"fault: {fault}" for fault in plan.faults]
    lines.append("numbers")
    lines += [f"  {name:<35}{value:>14,}" for name, value in plan.numbers.items()]
    return "\n".join(lines)


def plan_here(config: Config, machine: Machine) -> Plan:
    return plan_for(config, shapes_here(config), gpu_gib=machine.gpu_gib or ASSUMED_GPU_GIB)


def shapes_here(config: Config) -> dict[str, Shape | None]:
    """Of every model by its place; None where neither the configuration nor files here say it."""
    shapes = {"policy": shape_of(config.policy)}
    return shapes | {place: shape_of(voter.model) for place, voter in critics_here(config) if voter.model}


def describe(config: Config) -> str:
    """The resolved configuration and its plan: what `dry_run=true` prints first. Needs no network, starts nothing."""
    import yaml

    plan = plan_here(config, this_machine(config.cluster))
    resolved = yaml.safe_dump(_without_idle(config), sort_keys=False, allow_unicode=True, width=120)
    return f"{resolved}\n{render(plan)}"


def _without_idle(config: Config) -> dict[str, Any]:
    """The configuration without what has no meaning on its device."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    idle = "kv_cache_gib" if config.cluster.device == "gpu" else "gpu_memory_share"
    critic = tree["critic"] or {}
    for engine in (tree["rollout"], critic, *critic.get("others", ())):
        engine.pop(idle, None)
    return tree


def refuse_unfit(config: Config, machine: Machine | None = None) -> None:
    """Raises ConfigError when this machine cannot hold the run, or none can. What nodes a cluster that is joined has is
    for it to say (cluster.placement)."""
    if config.cluster.address is not None:
        if faults := plan_here(config, this_machine(config.cluster)).faults:
            raise ConfigError(f"{config.name} fits no cluster: {'; '.join(faults)}")
        refuse_silent(config.cluster.address)
        return
    here = machine or this_machine(config.cluster)
    plan = plan_here(config, here)
    missing = fits(plan, here)
    if not missing:
        return
    fitting = experiments_that_fit(here)
    what = ", ".join(f"{r.processes} x {r.role} with {r.gpus_each:g} GPUs" for r in plan.roles if r.gpus_each)
    raise ConfigError(
        f"{config.name} does not fit this machine.\n"
        f"  it needs: {plan.needs('GPU'):g} GPUs, {plan.needs('CPU'):g} cores{f' ({what})' if what else ''}\n"
        f"  here: {here}\n"
        f"  missing: {'; '.join(missing)}\n"
        f"  fits here: {' or '.join(f'+experiment={name}' for name in fitting) or 'none of the experiments'}\n"
        "  elsewhere: join a cluster with cluster.address=auto, or see the plan with dry_run=true"
    )


def refuse_silent(address: str) -> None:
    """Raises ConfigError when no cluster can be joined at `address`."""
    if reason := why_silent(address):
        raise ConfigError(
            f"cluster.address: nothing answers at {address} ({reason}); start Ray on its nodes, and see that this port "
            "of its head is open from here: docs/launch.md"
        )


def experiments_that_fit(machine: Machine) -> list[str]:
    """Names of the experiments in conf/ that `machine` can hold."""
    names = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
    configs = {name: _experiment(name) for name in names}
    return [name for name, config in configs.items() if config and not fits(plan_here(config, machine), machine)]


@cache
def _experiment(name: str) -> Config | None:
    """An experiment as it stands in conf/; None where it asks for a value, such as the path of a data file."""
    try:
        return compose([f"+experiment={name}"])
    except ConfigError:
        return None
