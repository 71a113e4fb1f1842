"""Who is awake when, where all roles share all GPUs (`cluster.sharing` turns), and what that takes.

Pure arithmetic over a Config and the shapes of its models; on GPUs alone is there anything to share. Leaves out putting
anybody to sleep (cluster) and what a role takes while it is awake (memory).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from capo_ray.config.model import Shape
from capo_ray.config.run import Config
from capo_ray.planning import hardware as hw
from capo_ray.planning.bundles import Role, critics_here
from capo_ray.planning.memory import GIB, asleep_gib, engines_memory, in_words, rank_of, ways_to_save

Phase = Literal["sample", "judge", "train", "sync"]
"""Of a step, in this order; weights move in `sync`."""
Shapes = Mapping[str, Shape | None]

NEEDED: dict[Phase, frozenset[Role]] = {
    "sample": frozenset({"rollout"}),
    "judge": frozenset({"critic"}),
    "train": frozenset({"trainer"}),
    "sync": frozenset({"trainer", "rollout"}),
}
"""Who works in a phase. In `sync` an engine needs its weights and no KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """GiB of one process on its GPU, or of the largest where a role has several kinds; an engine of several GPUs has
    one on each."""

    role: Role
    processes: int
    working: Mapping[Phase, float]
    """Of its GPU, in the phases in which it works."""
    idle: float
    """Of its GPU, awake in another."""
    asleep: float
    """Of its GPU."""
    aside: float
    """Of its host's memory: what it takes up again when it wakes."""

    def on_gpu(self, phase: Phase, *, lasting: bool) -> float:
        """`lasting`: it never sleeps."""
        if lasting:
            return max(self.working.get(phase, 0.0), self.idle)
        return self.working.get(phase, self.asleep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One phase, on the fullest of the GPUs."""

    phase: Phase
    gib: dict[str, float]
    """By who holds it."""
    switch_s: float
    """Until all are awake or asleep who were not so before."""

    @property
    def total_gib(self) -> float:
        return sum(self.gib.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A step of a run whose roles take turns."""

    phases: tuple[Turn, ...]
    aside: Mapping[Role, float]
    """GiB of the hosts' memory, by role, for all of its processes that sleep at times."""
    faults: tuple[str, ...]

    @property
    def switch_s(self) -> float:
        """Of a step."""
        return sum(turn.switch_s for turn in self.phases)


def awake(config: Config, shapes: Shapes, gpu_gib: float) -> dict[Phase, frozenset[Role]]:
    """Who is awake in each phase of a step of `config`, on GPUs of `gpu_gib`: who works in it, and who need not sleep
    at all, since every phase has room for it. `shapes` as in plan.plan_for; where one is unknown, on CPU, and on a
    cluster that is joined, whose GPUs are not known here, nobody stays awake. Without critics of the run's own those
    who sample are awake while others judge."""
    return _awake(config, _always(config, _footprints(config, shapes, gpu_gib), gpu_gib))


def _awake(config: Config, always: frozenset[Role]) -> dict[Phase, frozenset[Role]]:
    found = {phase: needed | always for phase, needed in NEEDED.items()}
    return found if critics_here(config) else found | {"judge": found["sample"]}


def turns_of(config: Config, shapes: Shapes, gpu_gib: float) -> Turns | None:
    """None where nobody shares a GPU in turns, or the shape of a model is unknown."""
    feet = _footprints(config, shapes, gpu_gib)
    if config.cluster.sharing != "turns" or not feet:
        return None
    always = _always(config, feet, gpu_gib)
    who = _awake(config, always)
    before, phases = who["sync"], []
    for phase, roles in who.items():
        if phase == "judge" and not (critics_here(config) or config.base_critic):
            continue
        moved = [foot for foot in feet if (foot.role in before) != (foot.role in roles)]
        gib = {
            foot.role if foot.role in roles else f"{foot.role} asleep": foot.on_gpu(phase, lasting=foot.role in always)
            for foot in feet
        }
        phases.append(Turn(phase=phase, gib=gib, switch_s=sum(map(_switch_s, moved))))
        before = roles
    aside = {foot.role: foot.aside * foot.processes for foot in feet if foot.role not in always and foot.aside}
    return Turns(phases=tuple(phases), aside=aside, faults=tuple(_faults(config, phases, gpu_gib)))


def _switch_s(foot: Footprint) -> float:
    return hw.SWITCH_S + foot.aside * GIB / hw.HOST_BYTES_PER_S


def _footprints(config: Config, shapes: Shapes, gpu_gib: float) -> list[Footprint]:
    """Of the roles on one GPU; none on CPU, or where the shape of a model is unknown."""
    policy = config.policy.shape or shapes.get("policy")
    critics = critics_here(config)
    known = all(voter.model and (voter.model.shape or shapes.get(place)) for place, voter in critics)
    if config.cluster.device == "cpu" or policy is None or not known:
        return []
    engines, rank = engines_memory(config, shapes, gpu_gib), rank_of(config, policy)
    sampling, held = engines["rollout"].gib, sum(rank.held.values())
    whole = sum(sampling.values())
    keeps = config.trainer.lora is not None and config.cluster.lora_sync == "adapter"  # no sync brings its weights
    asleep = asleep_gib(config.rollout)
    judging = whole if config.base_critic else asleep
    feet = [
        Footprint(
            role="rollout",
            processes=config.rollout.workers * config.rollout.tensor_parallel,
            working={"sample": whole, "judge": judging, "sync": whole - sampling["KV cache"]},
            idle=whole,
            asleep=asleep,
            aside=sampling["weights"] if keeps else 0.0,
        )
    ]
    if critics:
        judging = max(sum(engines[place].gib.values()) for place, _ in critics)
        feet.append(
            Footprint(
                role="critic",
                processes=sum(voter.workers * voter.tensor_parallel for _, voter in critics),
                working={"judge": judging},
                idle=judging,
                asleep=max(asleep_gib(voter) for _, voter in critics),
                aside=max(engines[place].gib["weights"] for place, _ in critics),
            )
        )
    trainer = Footprint(
        role="trainer",
        processes=config.trainer.ranks,
        working={
            "train": sum(rank.most("activations", "optimizer step").values()),
            "sync": sum(rank.most("weight sync").values()),
        },
        idle=held + sum(rank.process.values()),
        asleep=sum(rank.process.values()),
        aside=held,
    )
    return [*feet, trainer]


def _always(config: Config, feet: Collection[Footprint], gpu_gib: float) -> frozenset[Role]:
    """Who never sleeps; those with most to put aside are asked first."""
    found: frozenset[Role] = frozenset()
    if config.cluster.address is not None:
        return found
    for foot in sorted(feet, key=lambda one: one.aside, reverse=True):
        trial = found | {foot.role}
        if all(sum(one.on_gpu(phase, lasting=one.role in trial) for one in feet) <= gpu_gib for phase in NEEDED):
            found = trial
    return found


def _faults(config: Config, phases: Collection[Turn], gpu_gib: float) -> Iterator[str]:
    for turn in phases:
        if turn.total_gib <= gpu_gib or turn.phase == "train":  # which the plan says of ranks everywhere
            continue
        ways = ways_to_save(config, passing=False)
        if turn.phase in ("sample", "judge"):
            role = "rollout" if turn.phase == "sample" else "critic"
            share = (gpu_gib - turn.total_gib + turn.gib[role]) / gpu_gib
            ways = [f"lower {role}.gpu_memory_share to {math.floor(100 * share) / 100:g}"]
        yield (
            f"{turn.phase}: {turn.total_gib:.1f} GiB on a GPU ({in_words(turn.gib)}), which has {gpu_gib:g}; "
            + " or ".join(ways)
        )


def lines_of(turns: Turns) -> Iterator[str]:
    """As the plan has them."""
    yield "  all roles share all GPUs, one after the other; on one of them"
    for turn in turns.phases:
        yield f"    {turn.phase:<8}{turn.total_gib:>6.1f} GiB = {in_words(turn.gib)}; {turn.switch_s:.1f} s to switch"
    if turns.aside:
        yield f"    asleep in host memory {sum(turns.aside.values()):.1f} GiB = {in_words(turns.aside)}"
