"""Rollout workers and critics that a run leaves to the next, which takes them if it asks for the very same.

Of each role those of one run are kept, in a team of their own, also during runs that need none. A rollout worker
samples nothing before its new trainer has sent it weights; what a critic has in its prefix cache stays there. Leaves
out how actors are placed and started (cluster.placement).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from capo_ray.cluster.placement import Make, Team, environment, there
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role, seats, shortages


class KeptEngines:
    def __init__(self, name: str) -> None:
        """`name` is what Ray's dashboard and metrics call the run of these engines."""
        self._name = name
        self._kept: dict[Role, tuple[Team, object]] = {}
        """With what they are made of."""

    @asynccontextmanager
    async def lend(self, config: Config, make: Mapping[Role, Make]) -> AsyncIterator[Sequence[Team]]:
        """Teams of the engines that a run with `config` needs (placement.Lend). Where it fails all are dismissed:
        what they were doing then is not known."""
        teams = {role: Team(config, self._name, [role]) for role in make if can_outlive(config, role)}
        wanted = {role: (team, _recipe(config, team, make[role])) for role, team in teams.items() if team.seats}
        try:
            await self._make_room(config, {role: recipe for role, (_, recipe) in wanted.items()})
            for role, (team, recipe) in wanted.items():
                if role not in self._kept:
                    self._kept[role] = team, recipe
                    await team.place()
                    team.hire(role, make[role])
            yield [self._kept[role][0] for role in wanted]
        except BaseException:
            await self.close()
            raise

    async def _make_room(self, config: Config, wanted: Mapping[Role, object]) -> None:
        """Dismiss engines that are not those which are `wanted` or that are lost, and idle ones beside which the run
        has no room."""
        for role, recipe in wanted.items():
            if role in self._kept:
                team, theirs = self._kept[role]
                if theirs != recipe or not await team.all_up():
                    await self._dismiss(role)
        idle = [role for role in self._kept if role not in wanted]
        bundles = [bundle for role in idle for bundle in self._kept[role][0].bundles]
        if shortages([*seats(config)[0], *bundles], there()):
            for role in idle:
                await self._dismiss(role)

    async def close(self) -> None:
        await asyncio.gather(*(self._dismiss(role) for role in self._kept))

    async def _dismiss(self, role: Role) -> None:
        try:
            await self._kept[role][0].dismiss()
        finally:
            del self._kept[role]


def can_outlive(config: Config, role: Role) -> bool:
    """Whether engines of `role` can outlive a run. Nobody where roles take turns, awake and asleep as one run has them;
    rollout workers only where a second trainer can open the weight transfer to them: over shared memory."""
    if config.cluster.sharing == "turns":
        return False
    return role == "critic" or (role == "rollout" and config.cluster.weight_transfer == "shm")


def _recipe(config: Config, team: Team, make: Make) -> object:
    """Two teams of engines with equal ones are the same."""
    traced = config.tracking.trace
    return [(environment(config, seat.role), seat.resources, traced, *map(_parts, make(seat))) for seat in team.seats]


def _parts(factory: Any) -> object:
    return factory.func, factory.args, factory.keywords
