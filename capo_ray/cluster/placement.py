"""Which actor gets what of the machines: teams of actors, each with a placement group.

Every actor has a bundle; the bundles are compared with the cluster before they are asked for, since a group that can
never be met waits for ever. Leaves out the arithmetic of the bundles (planning), what the actors are made of
(training.build) and what they do (actors).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any, Self, get_args

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from capo_ray.cluster.actors import CriticActor, RolloutActor, TrainerActor
from capo_ray.cluster.faults import NotEnough, cause_of
from capo_ray.cluster.gauges import Badge
from capo_ray.cluster.notices import told_to_go
from capo_ray.cluster.patience import ends_within, when_up, with_patience
from capo_ray.cluster.revivals import limit
from capo_ray.cluster.session import head_address, why_head_silent
from capo_ray.cluster.shard import AggregatorActor
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role, Seat, actor_name, critics_here, misfit, seats, shortages
from capo_ray.planning.machine import why_silent

log = logging.getLogger(__name__)

Bundle = dict[str, float]
Make = Callable[[Seat], tuple[Any, ...]]
"""What the actor in a seat is made with: its factory first, a function of an importable module."""
Lend = Callable[[Config, Mapping[Role, Make]], AbstractAsyncContextManager[Sequence["Team"]]]
"""Teams of engines that are ready or start, for as long as a run needs them."""

MANY = 1_000_000
"""Concurrent calls of an async actor: how many run is decided by whoever calls, not by Ray."""
LOOK_S = 5.0
"""Between two looks whether what is waited for can come."""
AGAIN = {"max_restarts": -1}
"""Ray starts a rollout worker or critic that died again; how often is limited by revivals."""
_CLASSES: dict[Role, type] = {
    "rollout": RolloutActor,
    "critic": CriticActor,
    "trainer": TrainerActor,
    "aggregator": AggregatorActor,
}
_OPTIONS: dict[Role, dict[str, Any]] = {
    "rollout": {"max_concurrency": MANY, **AGAIN},
    "critic": {"max_concurrency": MANY, **AGAIN},
    "trainer": {},
    "aggregator": {"max_concurrency": MANY},
}


@cache
def remote_class(role: Role) -> Any:
    """What Ray makes actors of `role` of. A trainer has a thread for its work, which is done in order, and one beside
    it; the others do everything side by side. Made once: Ray keeps every such class as long as the process lives."""
    made = ray.remote(concurrency_groups={"pulse": 1}) if role == "trainer" else ray.remote
    return made(_CLASSES[role])


def environment(config: Config, role: Role) -> dict[str, str]:
    """Environment of an actor's process, set before it imports anything."""
    if config.cluster.device == "gpu":
        # Handles of GPU memory are objects that vLLM passes to its own engine process only when told to; both are ours.
        handles = role == "rollout" and config.cluster.weight_transfer == "ipc"
        variables = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if handles else {}
        return variables | (_pinned_as_asked() if config.cluster.sharing == "turns" else {})
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    most = max((voter.kv_cache_gib for _, voter in critics_here(config)), default=1)
    kv_cache = {"rollout": config.rollout.kv_cache_gib, "critic": most}
    if role in kv_cache:
        variables |= {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache[role]), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return variables


def _pinned_as_asked() -> dict[str, str]:
    """torch rounds pinned memory up to a power of two, and what is put aside in turns could take twice the host's
    memory that is planned. Beside what this process was given for the same."""
    given = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    return {"PYTORCH_ALLOC_CONF": ",".join(filter(None, ("pinned_max_round_threshold_mb:1", given)))}


def duty(config: Config, seat: Seat) -> str:
    """What an actor does and with what."""
    if seat.role == "rollout":
        return f"samples from {config.policy.path}" + (", judges with its base" if config.base_critic else "")
    if seat.role == "trainer":
        return f"trains {config.policy.path}, ZeRO {config.trainer.zero_stage}"
    if seat.role == "aggregator":
        return f"verifies {config.data.kind}" + (f", votes by {config.reward.vote}" if config.critic else "")
    models = [voter.model.path for _, voter in critics_here(config) for _ in range(voter.workers) if voter.model]
    return f"judges with {models[seat.number]}"


def badge_of(config: Config, run: str, seat: Seat) -> Badge:
    judges = seat.role == "rollout" and config.base_critic is not None
    critic = actor_name("critic", seat.number) if judges else ""  # as metrics.jsonl has it
    return Badge(run, seat.role, seat.name, duty(config, seat), config.tracking.trace, critic)


class Team:
    """The actors of a run, or of some of its roles, on one placement group: `async with Team(config, run) as team` has
    it placed; at the end all actors are closed, then killed, and the group is given back."""

    def __init__(
        self, config: Config, run: str, roles: Collection[Role] = get_args(Role), *, ready: Sequence[Team] = ()
    ) -> None:
        """`run` is what Ray's dashboard and metrics call the run. Roles that share bundles belong in one team. Actors
        of roles that a team of `ready` has are taken from there, and stay there."""
        self._team_of = {role: team for team in ready for role in team.roles}
        self.roles: list[Role] = [role for role in roles if role not in self._team_of]
        self._config = config
        self._run = run
        self._namespace = f"capo_ray-{secrets.token_hex(4)}"  # a team that is hired anew takes the old one's names
        self._sit(together=False)
        self._group: Any = None
        self._hired: list[tuple[Seat, Any]] = []
        self._limiting: asyncio.Task[None] | None = None

    def _sit(self, *, together: bool) -> None:
        bundles, everybody = seats(self._config, together=together)
        self.seats = [seat for seat in everybody if seat.role in self.roles]
        self._places = {bundle: place for place, bundle in enumerate(sorted({seat.bundle for seat in self.seats}))}
        self.bundles: list[Bundle] = [bundles[bundle] for bundle in self._places]
        whole = len(self.seats) == len(everybody)
        mine = dict.fromkeys(seat.role for seat in self.seats)
        self._name = self._run if whole else f"{self._run}: {', '.join(mine)}"

    async def __aenter__(self) -> Self:
        try:
            await self.place()
        except BaseException:
            await self.dismiss()
            raise
        self._limiting = asyncio.create_task(limit(lambda: self.actors, self._no_place))
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._limiting is not None:
            self._limiting.cancel()
        await self.dismiss()

    async def place(self) -> None:
        """Get the placement group; trainer ranks stay on one node where one has room for all. Raises NotEnough."""
        if not self.bundles:
            return
        self._refuse()
        self._sit(together=True)
        if misfit(self.bundles, _nodes()):
            self._sit(together=False)
        strategy = "PACK" if self._config.cluster.placement == "pack" else "SPREAD"
        self._group = placement_group(self.bundles, strategy=strategy, name=self._name)
        what = f"the placement group of {len(self.bundles)} bundles"
        placed = asyncio.ensure_future(with_patience(self._group.ready(), what))
        try:
            while not (await asyncio.wait((placed,), timeout=LOOK_S))[0]:
                self._refuse()  # a machine that has just died is counted until Ray's head has missed it for a while
            placed.result()
        finally:
            placed.cancel()

    def _refuse(self) -> None:
        """Raises NotEnough where the machines that are there cannot hold the bundles: Ray would wait for ever."""
        refuse_too_much(self.bundles, there(), joined=self._config.cluster.address is not None)
        refuse_misfit(self.bundles, _nodes())

    def _no_place(self) -> dict[str, str]:
        """Rollout workers, those that were ready too, and why there is no place for a machine's bundles that is gone;
        empty where there is, or none is gone. A critic is waited for as long as critic.on_outage says, a worker by
        every sync."""
        found = {name: why for team in set(self._team_of.values()) for name, why in team._no_place().items()}
        if self._group is None or placement_group_table(self._group)["state"] != "RESCHEDULING":
            return found
        try:
            self._refuse()
        except NotEnough as error:
            return found | {seat.name: str(error) for seat in self.seats if seat.role == "rollout"}
        return found

    def hire(self, role: Role, make: Make) -> dict[str, Any]:
        """Start the actor of every seat of `role`, or take those that are ready; by name. `ready` waits for them.
        Trainer ranks come before those who share their GPUs."""
        for seat in self.seats:
            if seat.role == role:
                self._hired.append((seat, self._start(seat, make(seat))))
        team = self._team_of.get(role, self)
        return {seat.name: actor for seat, actor in team._hired if seat.role == role}

    def _start(self, seat: Seat, given: tuple[Any, ...]) -> Any:
        badge = badge_of(self._config, self._run, seat)
        made = remote_class(seat.role).options(
            name=str(badge),
            namespace=self._namespace,
            num_cpus=seat.resources["CPU"],
            num_gpus=seat.resources.get("GPU", 0),
            runtime_env={"env_vars": environment(self._config, seat.role)},
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._places[seat.bundle]
            ),
            **_OPTIONS[seat.role],
        )
        if not seat.shares:
            return made.remote(*given, badge)
        ranks = {one.number: str(badge_of(self._config, self._run, one)) for one in self.seats if one.role == "trainer"}
        return made.remote(*given, badge, [(ranks[rank], self._namespace) for rank in seat.shares])

    async def ready(self) -> None:
        """Wait until every engine has started. Raises with the name and cause of the first that cannot."""
        mine = [_started(seat.name, actor) for seat, actor in self._hired if seat.role != "trainer"]
        await asyncio.gather(*mine, *(team.ready() for team in set(self._team_of.values())))

    async def all_up(self) -> bool:
        """Whether all are there, once Ray has started again those that died since they were last asked."""
        try:
            await asyncio.gather(*(when_up(actor, "an engine to start again") for seat, actor in self._hired))
        except RayActorError:
            return False
        return True

    @property
    def actors(self) -> dict[str, Any]:
        """All that are hired so far or were ready, by name."""
        teams = {self, *self._team_of.values()}
        return {seat.name: actor for team in teams for seat, actor in team._hired}

    async def dismiss(self) -> None:
        """Close every actor, then kill it, and give the placement group back. Where Ray's head is gone nothing is asked
        of it: a call that waits for it ends the whole program after a minute, whatever goes on by then."""
        if await asyncio.to_thread(why_silent, head_address()):
            log.warning("Ray does not answer: its head is gone. What it ran ends with it")
            return
        try:
            if closing := [actor.close.remote() for _, actor in self._hired]:
                await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=10)
        finally:
            if why_head_silent() or not ends_within(5, self._give_back):
                log.warning("Ray does not answer: its head is gone. What it ran ends with it")

    def _give_back(self) -> None:
        for _, actor in self._hired:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)


async def _started(name: str, actor: Any) -> None:
    try:
        await with_patience(actor.ready.remote(), f"{name} to start")
    except RayActorError as error:
        raise RuntimeError(f"{name} could not start: {cause_of(error)}") from error


def _nodes() -> list[Bundle]:
    """What each machine has that is alive, and stays."""
    going = told_to_go()
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]


def there() -> Bundle:
    """What the machines have together."""
    nodes = _nodes()
    return {name: sum(node.get(name, 0.0) for node in nodes) for node in nodes for name in node}


def refuse_too_much(bundles: Sequence[dict[str, float]], there: dict[str, float], *, joined: bool = False) -> None:
    """Raises NotEnough when the cluster as a whole has less than the bundles ask for. `joined`: it is not one that
    this run started."""
    short = shortages(bundles, there)
    if short:
        faults = ", ".join(f"{asked:g} {name} (there are {found:g})" for name, (asked, found) in short.items())
        larger = "add nodes to the cluster" if joined else "join a larger cluster with cluster.address=auto"
        raise NotEnough(f"this run needs {faults}. Ask for fewer workers, {larger}, or start with +experiment=tiny_cpu")


def refuse_misfit(bundles: Sequence[dict[str, float]], nodes: Sequence[dict[str, float]]) -> None:
    """Raises NotEnough when there is enough of everything, and no node for some bundle: Ray would wait for ever."""
    if reason := misfit(bundles, nodes):
        raise NotEnough(f"{reason}. Lower tensor_parallel of the engines, or take larger nodes")
