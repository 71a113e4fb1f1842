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

from capo_ray.cluster.placement import Team, environment
from capo_ray.config.run import Config
from capo_ray.plan import Role, seats, shortages

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
        if self._warm is not None:
            await self._warm.make_room(self._config, {role: self._asked[role] for role in self._lasting})
        await self._team.place()
        self.rollouts, self.critics = [await self._engines(role) for role in self._asked]
        return self

    async def _engines(self, role: Role) -> list[Any]:
        if not self._asked[role]:
            return []
        if self._warm is not None and role in self._lasting:
            return await self._warm.engines(self._config, role, self._asked[role])
        return self._team.hire(role, [(factory,) for factory in self._asked[role]])

    def trainers(self, factory: Callable[..., Any], make_sender: Callable[..., Any]) -> list[Any]:
        return self._team.hire("trainer", [(factory, make_sender, rank) for rank in range(self._config.trainer.ranks)])

    def aggregators(self, factory: Callable[..., Any]) -> list[Any]:
        return self._team.hire("aggregator", [(factory, shard) for shard in range(self._config.reward.aggregators)])

    async def ready(self) -> None:
        """Wait until every engine has started. Raises with the name and cause of the first that cannot."""
        await asyncio.gather(self._team.ready(), *([self._warm.ready()] if self._warm is not None else []))

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        await self._team.dismiss()
        if self._warm is not None and kind is not None:
            await self._warm.close()  # what they were doing when the run failed is not known


@dataclass(frozen=True, slots=True)
class _Held:
    recipe: object
    team: Team
    actors: list[Any]


class WarmEngines:
    """Rollout workers and critics that a run leaves to the next, which takes them if it asks for the very same.

    Of each role those of one run are held, so that no more memory is taken than a run would. A rollout worker samples
    nothing before its new trainer has sent it weights; what a critic has in its prefix cache stays there.
    """

    def __init__(self, name: str) -> None:
        """`name` is what Ray's dashboard and metrics call the run of these engines."""
        self._name = name
        self._held: dict[Role, _Held] = {}

    async def make_room(self, config: Config, wanted: Mapping[Role, Sequence[Factory]]) -> None:
        """Dismiss engines that are not those which are `wanted`, and idle ones beside which the run has no room."""
        for role, factories in wanted.items():
            held = self._held.get(role)
            if held is not None and factories and held.recipe != _recipe(config, role, factories):
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
            await team.place()
            actors = team.hire(role, [(factory,) for factory in factories])
            self._held[role] = _Held(_recipe(config, role, factories), team, actors)
        return self._held[role].actors

    async def ready(self) -> None:
        await asyncio.gather(*(held.team.ready() for held in self._held.values()))

    async def close(self) -> None:
        for role in list(self._held):
            await self._dismiss(role)

    async def _dismiss(self, role: Role) -> None:
        await self._held.pop(role).team.dismiss()


def can_outlive(config: Config, role: Role) -> bool:
    """Whether engines of `role` can outlive a run: not where they share their GPUs with its trainers."""
    return role == "critic" or (role == "rollout" and config.cluster.weight_transfer != "ipc")


def _recipe(config: Config, role: Role, factories: Sequence[Factory]) -> object:
    """Two engines with equal ones are the same."""
    resources = [seat.resources for seat in seats(config)[1] if seat.role == role]
    made_by = [(factory.func, factory.args, factory.keywords) for factory in factories]
    return environment(config, role), resources, made_by
