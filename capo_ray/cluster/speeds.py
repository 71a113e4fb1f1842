"""How fast and how busy actors were between two steps, by actor and by role, from the totals that they keep.

Leaves out what else a step is measured by (records.report) and what Prometheus sees meanwhile (gauges).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from time import monotonic
from typing import Any, Protocol, get_args

from ray.exceptions import RayActorError

from capo_ray.cluster.trainer_group import TrainerGroup
from capo_ray.planning.bundles import Role, actor_name
from capo_ray.records.tally import add
from capo_ray.types import Metrics

_GROW = ("busy_s", "generated_tokens", "prompt_tokens", "trained_tokens")


class Actors(Protocol):
    """All actors of a crew."""

    @property
    def workers(self) -> Sequence[Any]: ...
    @property
    def critics(self) -> Sequence[Any]: ...
    @property
    def aggregators(self) -> Sequence[Any]: ...
    @property
    def trainers(self) -> TrainerGroup: ...


class Speeds:
    """Asks all actors for their totals. One that is lost is left out; one that was started again counts from 0."""

    def __init__(self, actors: Actors) -> None:
        self._actors = actors
        self._seen: dict[str, Metrics] = {}
        self._since = monotonic()

    async def take(self) -> Metrics:
        """Since the last call, or since the start."""
        now = monotonic()
        elapsed, self._since = now - self._since, now
        new: dict[str, dict[str, Metrics]] = {role: {} for role in get_args(Role)}
        for (role, actor), totals in (await self._totals()).items():
            new[role][actor] = grown(self._seen.get(actor, {}), totals)
            self._seen[actor] = totals
        return speeds(new, elapsed)

    async def _totals(self) -> dict[tuple[Role, str], Metrics]:
        calls = _named("rollout", (worker.metrics.remote() for worker in self._actors.workers))
        calls |= _named("critic", (critic.judging.remote() for critic in self._actors.critics))
        calls |= _named("aggregator", (shard.totals.remote() for shard in self._actors.aggregators))
        answers = await asyncio.gather(*map(_unless_lost, calls.values()))
        found = {key: totals for key, totals in zip(calls, answers, strict=True) if totals is not None}
        asked = await asyncio.gather(*(_unless_lost(shard.engines.remote()) for shard in self._actors.aggregators))
        for (_, shard), engines in _named("aggregator", asked).items():
            found |= {("critic", f"{name} from {shard}"): totals for name, totals in (engines or {}).items()}
        return found | _named("trainer", await _unless_lost(self._actors.trainers.metrics()) or [])


def _named(role: Role, of_actors: Iterable[Any]) -> dict[tuple[Role, str], Any]:
    """What each actor of `role` has, by role and name."""
    return {(role, actor_name(role, number)): one for number, one in enumerate(of_actors)}


async def _unless_lost(call: Any) -> Any:
    """What a call returns; None where its actor is gone, which is for whoever needs the actor to find out."""
    try:
        return await call
    except RayActorError:
        return None


def grown(before: Mapping[str, float], now: Mapping[str, float]) -> Metrics:
    """What was added to totals; where one that only grows fell, its actor was started again, and all began from 0."""
    if any(now.get(name, 0.0) < before.get(name, 0.0) for name in _GROW):
        before = {}
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def speeds(new: Mapping[str, Mapping[str, Metrics]], elapsed: float) -> Metrics:
    """Metrics of what actors did (role -> actor -> what was added to their totals) in `elapsed` seconds."""
    made: Metrics = {}
    for role, actors in new.items():
        together = add(actors.values())
        if "generated_tokens" in together and together["busy_s"] > 0:
            made[f"speed/{role}_tokens_per_s"] = together["generated_tokens"] / together["busy_s"]
        if together.get("prompt_tokens", 0) > 0:
            made[f"cache/{role}_prompt_hit_share"] = together["cached_tokens"] / together["prompt_tokens"]
        shares = {actor: min(1.0, totals["busy_s"] / elapsed) for actor, totals in actors.items() if elapsed > 0}
        for actor, totals in actors.items():
            tokens, seconds = totals.get("generated_tokens"), totals["busy_s"]
            if tokens is None:
                tokens, seconds = totals.get("trained_tokens"), totals.get("stage_s_update", 0.0)
            if tokens is not None and seconds > 0:
                made[f"actor/{actor}/tokens_per_s"] = tokens / seconds
        made |= {f"actor/{actor}/busy_share": share for actor, share in shares.items()}
        if shares:
            made[f"idle/{role}_share"] = 1 - fmean(shares.values())
    return made
