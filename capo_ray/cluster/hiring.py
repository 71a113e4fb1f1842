"""Everybody who works on a run, hired and dismissed; and engines that one run leaves to the next.

Leaves out where actors are put (placement) and what they are made of (build).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, get_args

import ray
from ray.exceptions import RayActorError

from capo_ray.cluster.patience import when_up
from capo_ray.cluster.placement import Team, environment
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role, seats, shortages

Factory = partial[Any]
"""Makes an engine in its actor's process: a function of an importable module, and all that it is given."""


class Hire:
    """All actors of a run: `async with Hire(config) as hire`; at the end they are closed, then killed.

    `rollouts` and `critics` are the actors of the engines that were asked for.
    """

    def __init__(
        self,
        config: Config,
        *,
        rollouts: Sequence[Factory] = (),
        critics: Sequence[Factory] = (),
        run: str | None = None,
        warm: WarmEngines | None = None,
    ) -> None:
        """`run` is what Ray's dashboard and metrics call the run; None: its name in the configuration. With `warm` the
        engines are taken from there and stay there, unless the run fails."""
        self._config = config
        self._asked: dict[Role, Sequence[Factory]] = {"rollout": rollouts, "critic": critics}
        self._warm = warm
        self._lasting = [role for role in self._asked if warm is not None and can_outlive(config, role)]
        self._team = Team(config, run or config.name, [role for role in get_args(Role) if role not in self._lasting])
        self.rollouts: list[Any] = []
        self.critics: list[Any] = []

    async def __aenter__(self) -> Self:
        try:
            if self._warm is not None:
                await self._warm.make_room(self._config, {role: self._asked[role] for role in self._lasting})
            await self._team.place()
            self.rollouts, self.critics = [await self._engines(role) for role in self._asked]
        except BaseException:
            await self._leave(failed=True)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        await self._leave(failed=kind is not None)

    async def _leave(self, *, failed: bool) -> None:
        try:
            await self._team.dismiss()
        finally:
            if self._warm is not None and failed:
                await self._warm.close()  # what they were doing when the run failed is not known

    async def _engines(self, role: Role) -> list[Any]:
        if not self._asked[role]:
            return []
        if self._warm is not None and role in self._lasting:
            return await self._warm.engines(self._config, role, self._asked[role])
        return self._team.hire(role, [(factory,) for factory in self._asked[role]])

    @property
    def everybody(self) -> dict[str, Any]:
        """All actors hired so far, by name."""
        engines = {"rollout": self.rollouts, "critic": self.critics}
        return self._team.actors | {f"{role}-{n}": one for role, all_ in engines.items() for n, one in enumerate(all_)}

    def trainers(self, factory: Callable[..., Any], make_sender: Callable[..., Any]) -> list[Any]:
        return self._team.hire("trainer", [(factory, make_sender, rank) for rank in range(self._config.trainer.ranks)])

    def aggregators(self, factory: Callable[..., Any]) -> list[Any]:
        return self._team.hire("aggregator", [(factory, shard) for shard in range(self._config.reward.aggregators)])

    async def ready(self) -> None:
        """Wait until every engine has started. Raises with the name and cause of the first that cannot."""
        warm = [self._warm.ready(role) for role in self._lasting if self._asked[role]] if self._warm is not None else []
        await asyncio.gather(self._team.ready(), *warm)


@dataclass(frozen=True, slots=True)
class _Held:
    recipe: object
    team: Team
    actors: list[Any]


class WarmEngines:
    """Rollout workers and critics that a run leaves to the next, which takes them if it asks for the very same.

    Of each role those of one run are held, also during runs that need none. A rollout worker samples nothing before its
    new trainer has sent it weights; what a critic has in its prefix cache stays there.
    """

    def __init__(self, name: str) -> None:
        """`name` is what Ray's dashboard and metrics call the run of these engines."""
        self._name = name
        self._held: dict[Role, _Held] = {}

    async def make_room(self, config: Config, wanted: Mapping[Role, Sequence[Factory]]) -> None:
        """Dismiss engines that are not those which are `wanted` or that are lost, and idle ones beside which the run
        has no room."""
        for role, factories in wanted.items():
            held = self._held.get(role)
            if held is None or not factories:
                continue
            if held.recipe != _recipe(config, role, factories) or not await _all_up(held.actors):
                await self._dismiss(role)
        idle = [role for role in self._held if not wanted.get(role)]
        bundles = [bundle for role in idle for bundle in self._held[role].team.bundles]
        if shortages([*seats(config)[0], *bundles], ray.cluster_resources()):
            for role in idle:
                await self._dismiss(role)

    async def engines(self, config: Config, role: Role, factories: Sequence[Factory]) -> list[Any]:
        """The actors of these engines: those that are held, or new ones that are started. After `make_room`."""
        if role not in self._held:
            team = Team(config, self._name, [role])
            held = self._held[role] = _Held(_recipe(config, role, factories), team, [])
            await team.place()
            held.actors.extend(team.hire(role, [(factory,) for factory in factories]))
        return self._held[role].actors

    async def ready(self, role: Role) -> None:
        """Wait until the engines of `role` have started."""
        await self._held[role].team.ready()

    async def close(self) -> None:
        await asyncio.gather(*(self._dismiss(role) for role in self._held))

    async def _dismiss(self, role: Role) -> None:
        try:
            await self._held[role].team.dismiss()
        finally:
            del self._held[role]


async def _all_up(actors: Sequence[Any]) -> bool:
    """Whether all of them are there, once Ray has started again those that died since they were last asked."""
    try:
        await asyncio.gather(*(when_up(actor, "an engine to start again") for actor in actors))
    except RayActorError:
        return False
    return True


def can_outlive(config: Config, role: Role) -> bool:
    """Whether engines of `role` can outlive a run. Rollout workers only where a second trainer can open the weight
    transfer to them: over shared memory."""
    return role == "critic" or (role == "rollout" and config.cluster.weight_transfer == "shm")


def _recipe(config: Config, role: Role, factories: Sequence[Factory]) -> object:
    """Two engines with equal ones are the same."""
    resources = [seat.resources for seat in seats(config)[1] if seat.role == role]
    made_by = [(factory.func, factory.args, factory.keywords) for factory in factories]
    return environment(config, role), resources, made_by
