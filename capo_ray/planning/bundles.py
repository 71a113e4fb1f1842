"""The bundles that a run asks Ray for, who sits in which, and whether machines can hold them.

Pure arithmetic over a Config. Leaves out memory (memory), the whole plan (plan) and asking Ray (cluster.placement).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
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
    """That it asks Ray for."""
    shares: Sequence[int] = ()
    """The trainer ranks whose GPUs it has too, one of each; of Ray it asks for none."""

    @property
    def name(self) -> str:
        return actor_name(self.role, self.number)

    @property
    def gpus(self) -> int:
        """That it sees."""
        return len(self.shares) or int(self.resources.get("GPU", 0))


def actor_name(role: Role, number: int) -> str:
    """As it is shown, and never read: who needs the parts has them."""
    return f"{role}-{number}"


def seats(config: Config, *, together: bool = False) -> tuple[list[dict[str, float]], list[Seat]]:
    """The bundles of the placement group, and the seat of every actor in them.

    A bundle is on one node. Where GPUs are shared, trainer ranks ask for them, and whoever has the same GPUs sits in
    the same bundle. `together`: all trainer ranks on GPUs of their own are one bundle, so that none is on another node
    than the rest.
    """
    gpu = config.cluster.device == "gpu"
    spans = _spans(config)
    homes = _homes(chain(*spans.values()))
    places = {home: place for place, home in enumerate(sorted(set(homes.values())))}
    bundles: list[dict[str, float]] = [{} for _ in places]
    made: list[Seat] = []
    taken: Counter[Role] = Counter()

    def seat(role: Role, gpus: int, *, bundle: int | None = None, shares: Sequence[int] = ()) -> None:
        need = {"CPU": float(max(1, gpus)) if gpu else CPU_SHARE}
        if gpu and gpus and not shares:
            need["GPU"] = gpus
        if bundle is None:
            bundles.append({})
            bundle = len(bundles) - 1
        bundles[bundle] = dict(Counter(bundles[bundle]) + Counter(need))
        made.append(Seat(role, taken[role], bundle, need, shares))
        taken[role] += 1

    def engine(role: Role, gpus: int) -> None:
        span = spans[role][taken[role]] if spans[role] else ()
        seat(role, gpus, bundle=places[homes[span[0]]] if span else None, shares=span)

    for _ in range(config.rollout.workers):
        engine("rollout", config.rollout.tensor_parallel)
    for _, voter in critics_here(config):
        for _ in range(voter.workers):
            engine("critic", voter.tensor_parallel)
    first = len(bundles)
    for rank in range(config.trainer.ranks):
        joined = first if together and gpu and rank else None
        seat("trainer", 1, bundle=places[homes[rank]] if homes else joined)
    for _ in range(config.reward.aggregators):
        seat("aggregator", 0)
    return bundles, made


def _spans(config: Config) -> dict[Role, list[range]]:
    """Of each rollout worker and critic, the trainer ranks whose GPUs it shares; none of a role with its own. Critics
    of most GPUs come first: as numbers of GPUs divide one another (config.rules), no span lies across the end of a
    larger one."""
    spans: dict[Role, list[range]] = {"rollout": [], "critic": []}
    if config.cluster.device == "cpu" or config.cluster.sharing == "apart":
        return spans
    each = config.rollout.tensor_parallel
    spans["rollout"] = [range(n * each, (n + 1) * each) for n in range(config.rollout.workers)]
    if config.cluster.sharing == "turns":
        wide = [voter.tensor_parallel for _, voter in critics_here(config) for _ in range(voter.workers)]
        largest_first = sorted(range(len(wide)), key=lambda critic: -wide[critic])
        ends = list(accumulate(wide[critic] for critic in largest_first))
        found = {critic: range(end - wide[critic], end) for critic, end in zip(largest_first, ends, strict=True)}
        spans["critic"] = [found[critic] for critic in range(len(wide))]
    return spans


def _homes(spans: Iterable[range]) -> dict[int, int]:
    """Of each rank in `spans`, the first of those that must be on its node: of the largest span that it is in."""
    found: dict[int, int] = {}
    for span in sorted(spans, key=len):
        found |= dict.fromkeys(span, span.start)
    return found


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
