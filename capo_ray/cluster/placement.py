"""Which actor gets what of the machines, and the hiring and dismissal of all of them.

Every actor has a bundle of one placement group; the group is compared with the cluster before it is asked for, since
one that can never be met waits for ever. Leaves out the arithmetic of the bundles (plan) and what the actors do
(actors).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from capo_ray.cluster.actors import AggregatorActor, CriticActor, RolloutActor, TrainerActor
from capo_ray.cluster.faults import cause_of
from capo_ray.cluster.gauges import Badge
from capo_ray.cluster.patience import ends_within, with_patience
from capo_ray.config.run import Config
from capo_ray.plan import Role, critics_here, seats, shortages

log = logging.getLogger(__name__)

MANY = 1_000_000
"""Concurrent calls of an async actor: how many run is decided by whoever calls, not by Ray."""
RESTARTS = 3
"""How often Ray starts a rollout worker or critic again that died."""


class NotEnough(RuntimeError):
    """The cluster cannot hold the run."""


def environment(config: Config, role: Role) -> dict[str, str]:
    """Environment of an actor's process, set before it imports anything."""
    if config.cluster.device == "gpu":
        return {}
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    most = max((voter.kv_cache_gib for _, voter in critics_here(config)), default=1)
    kv_cache = {"rollout": config.rollout.kv_cache_gib, "critic": most}
    if role in kv_cache:
        variables |= {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache[role]), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return variables


class Hire:
    """All actors of a run: `async with Hire(config) as hire`; at the end they are closed, then killed."""

    def __init__(self, config: Config, *, run: str | None = None) -> None:
        """`run` is what Ray's dashboard and metrics call the run; None: its name in the configuration."""
        self._config = config
        self._run = run or config.name
        self._namespace = f"capo_ray-{secrets.token_hex(4)}"  # a crew that is hired anew takes the old one's names
        self._bundles, self._seats = seats(config)
        self._group: Any = None
        self._actors: list[tuple[str, Any]] = []

    async def __aenter__(self) -> Self:
        refuse_too_much(self._bundles, ray.cluster_resources())
        strategy = "PACK" if self._config.cluster.placement == "pack" else "SPREAD"
        self._group = placement_group(self._bundles, strategy=strategy, name=self._run)
        await with_patience(self._group.ready(), f"the placement group of {len(self._bundles)} bundles")
        return self

    async def __aexit__(self, *error: object) -> None:
        closing = [actor.close.remote() for _, actor in self._actors]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=10)
        for _, actor in self._actors:
            ray.kill(actor)
        if not ends_within(5, partial(remove_placement_group, self._group)):
            log.warning("Ray does not answer: its head is gone. What it ran ends with it")

    def rollouts(self, factories: Sequence[Callable[[], Any]]) -> list[Any]:
        return self._hire("rollout", RolloutActor, [(factory,) for factory in factories], max_restarts=RESTARTS)

    def critics(self, factories: Sequence[Callable[[], Any]]) -> list[Any]:
        return self._hire("critic", CriticActor, [(factory,) for factory in factories], max_restarts=RESTARTS)

    def trainers(self, factory: Callable[..., Any], make_sender: Callable[..., Any]) -> list[Any]:
        ranks = range(self._config.trainer.ranks)
        return self._hire("trainer", TrainerActor, [(factory, make_sender, rank) for rank in ranks])

    def aggregators(self, factory: Callable[..., Any]) -> list[Any]:
        shards = range(self._config.reward.aggregators)
        return self._hire("aggregator", AggregatorActor, [(factory, shard) for shard in shards])

    def _hire(self, role: Role, actor_class: type, arguments: Sequence[tuple[Any, ...]], **options: Any) -> list[Any]:
        if role != "trainer":
            options["max_concurrency"] = MANY
        hired: list[Any] = []
        mine = [seat for seat in self._seats if seat.role == role]
        for number, (seat, given) in enumerate(zip(mine, arguments, strict=True)):
            badge = Badge(self._run, role, f"{role}-{number}")
            actor = (
                ray.remote(actor_class)
                .options(
                    name=str(badge),
                    namespace=self._namespace,
                    num_cpus=seat.resources["CPU"],
                    num_gpus=seat.resources.get("GPU", 0),
                    runtime_env={"env_vars": environment(self._config, role)},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=seat.bundle
                    ),
                    **options,
                )
                .remote(*given, badge)
            )
            hired.append(actor)
            self._actors.append((badge.actor, actor))
        return hired

    async def ready(self) -> None:
        """Wait until every engine has started. Raises with the name and cause of the first that cannot."""
        waiting = [self._wait(name, actor) for name, actor in self._actors if not name.startswith("trainer")]
        await asyncio.gather(*waiting)

    async def _wait(self, name: str, actor: Any) -> None:
        try:
            await with_patience(actor.ready.remote(), f"{name} to start")
        except RayActorError as error:
            raise RuntimeError(f"{name} could not start: {cause_of(error)}") from error


def refuse_too_much(bundles: Sequence[dict[str, float]], there: dict[str, float]) -> None:
    """Raises NotEnough when the cluster as a whole has less than the bundles ask for."""
    short = shortages(bundles, there)
    if short:
        faults = ", ".join(f"{asked:g} {name} (there are {found:g})" for name, (asked, found) in short.items())
        raise NotEnough(
            f"this run needs {faults}. Ask for fewer workers, join a larger cluster with cluster.address=auto, "
            "or start with +experiment=tiny_cpu"
        )
