"""The bundles that a run asks Ray for, who sits in which, and whether machines can hold them.

Pure arithmetic over a Config. Leaves out memory (memory), the whole plan (plan) and asking Ray (cluster.placement).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from capo_ray.config.critic import Voter, voter_field
from capo_ray.config.run import Config

Role = Literal["rollout", "critic", "trainer", "aggregator"]
CPU_SHARE = 0.1
"""Cores that an actor asks for where roles take turns on the cores."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One actor's part of the cluster."""

    role: Role
    number: int
    """Among those of its role."""
    bundle: int
    resources: dict[str, float]

    @property
    def name(self) -> str:
        return actor_name(self.role, self.number)


def actor_name(role: Role, number: int) -> str:
    """As it is shown, and never read: who needs the parts has them."""
    return f"{role}-{number}"


def seats(config: Config, *, together: bool = False) -> tuple[list[dict[str, float]], list[Seat]]:
    """The bundles of the placement group, and the seat of every actor in them.

    Where GPUs are shared, trainer rank and rollout worker n have one and so share a bundle; in turns critic n is in it
    too. `together`: all trainer ranks on GPUs of their own are one bundle, so that none is on another node than the
    rest.
    """
    gpu = config.cluster.device == "gpu"
    shared, turns = gpu and config.cluster.sharing != "apart", gpu and config.cluster.sharing == "turns"
    judged = sum(voter.workers for _, voter in critics_here(config)) if turns else 0
    bundles: list[dict[str, float]] = []
    made: list[Seat] = []
    taken: Counter[Role] = Counter()

    def seat(role: Role, gpus: float, *, bundle: int | None = None) -> None:
        need = {"CPU": max(1.0, gpus), "GPU": gpus} if gpu and gpus else {"CPU": 1.0 if gpu else CPU_SHARE}
        if bundle is None:
            bundles.append({})
            bundle = len(bundles) - 1
        bundles[bundle] = dict(Counter(bundles[bundle]) + Counter(need))
        made.append(Seat(role, taken[role], bundle, need))
        taken[role] += 1

    def half(number: int) -> float:
        """Shares of a GPU add up to 1, or Ray would count too few."""
        return 0.25 if number < judged else 0.5

    for worker in range(config.rollout.workers):
        seat("rollout", half(worker) if shared else config.rollout.tensor_parallel)
    for _, voter in critics_here(config):
        for _ in range(voter.workers):
            seat("critic", 0.5 if turns else voter.tensor_parallel, bundle=taken["critic"] if turns else None)
    first = len(bundles)
    for rank in range(config.trainer.ranks):
        joined = first if together and gpu and rank else None
        seat("trainer", half(rank) if shared else 1, bundle=rank if shared else joined)
    for _ in range(config.reward.aggregators):
        seat("aggregator", 0)
    return bundles, made


def critics_here(config: Config) -> list[tuple[str, Voter]]:
    """The critics that this run starts engines for, with their places in the configuration; servers are elsewhere."""
    voters = config.critic.voters if config.critic else ()
    return [(voter_field(n), voter) for n, voter in enumerate(voters) if voter.kind == "vllm"]


def needs(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What all `bundles` together ask for, by resource."""
    asked: Counter[str] = Counter()
    for bundle in bundles:
        asked.update(bundle)  # a Counter adds floats too
    return {resource: round(number, 6) for resource, number in asked.items()}


def shortages(bundles: Sequence[Mapping[str, float]], there: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Resource -> (asked for, there), of which there is too little; GPUs first."""
    asked = needs(bundles)
    return {r: (asked[r], there.get(r, 0)) for r in sorted(asked, reverse=True) if asked[r] > there.get(r, 0)}


def misfit(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> str:
    """Why `nodes` cannot hold the bundles, each of them whole on one node; empty where they can.

    Nodes are filled with the largest bundle first, each on the fullest node that has room for it.
    """
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda one: (one.get("GPU", 0), one.get("CPU", 0)), reverse=True):
        holding = [node for node in left if all(node.get(name, 0) + 1e-6 >= one for name, one in bundle.items())]
        if not holding:
            return _why(bundle, nodes)
        node = min(holding, key=lambda one: (one.get("GPU", 0), one.get("CPU", 0)))
        for name, number in bundle.items():
            node[name] -= number
    return ""


def _why(bundle: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    units = {"GPU": "GPUs", "CPU": "cores"}
    for name in sorted(bundle, reverse=True):
        largest = max((node.get(name, 0) for node in nodes), default=0)
        if bundle[name] > largest:
            what = f"{bundle[name]:g} {units.get(name, name)} on one node, and the largest node has {largest:g}"
            return f"an engine needs {what}"
    return (
        f"a part that needs {bundle.get('GPU', 0):g} GPUs and {bundle['CPU']:g} cores on one node finds no room beside "
        "the others"
    )
