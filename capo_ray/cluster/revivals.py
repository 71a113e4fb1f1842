"""How often an actor that dies is started again: so many times an hour, not over the life of a run.

Ray starts it again whenever it dies, while engines start too. One that dies too often, or that there is no place for,
is ended here for good, which is then a loss like another (restarts, critics.routing). Leaves out waiting for one that
starts again (patience), and where there is place (placement).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError

from capo_ray.cluster.patience import ends_within
from capo_ray.cluster.session import own_actors, why_head_silent

log = logging.getLogger(__name__)

MOST, WITHIN_S = 3, 3600.0
EVERY_S = 5.0

NoPlace = Callable[[], Mapping[str, str]]
"""Says, by name, why there is no place for those whom all would wait for, if their machine is gone."""


class Revivals:
    """When actors were started again, as far as that matters."""

    def __init__(self, *, most: int = MOST, within_s: float = WITHIN_S) -> None:
        self.most, self._within_s = most, within_s
        self._counted: dict[str, int] = {}
        """From when each was first seen: it may have worked for another run before."""
        self._times: dict[str, list[float]] = defaultdict(list)

    def too_many(self, counts: Mapping[str, int], now_s: float) -> list[str]:
        """Who was started again more than `most` times within `within_s`, given how often each was by now."""
        for name, count in counts.items():
            self._times[name] += [now_s] * (count - self._counted.setdefault(name, count))
            self._counted[name] = count
            self._times[name] = [time_s for time_s in self._times[name] if time_s > now_s - self._within_s]
        return [name for name in counts if len(self._times[name]) > self.most]


async def limit(
    actors: Callable[[], Mapping[str, Any]],
    no_place: NoPlace,
    *,
    every_s: float = EVERY_S,
    revivals: Revivals | None = None,
) -> None:
    """Look at `actors`, by name, until cancelled. A look that fails is told once for each cause, and is not the
    last."""
    revivals, given_up, told = revivals or Revivals(), set[str](), set[str]()
    while True:
        await asyncio.sleep(every_s)
        there = {name: actor for name, actor in actors().items() if name not in given_up}
        try:
            for name, cause in (await _to_be_ended(there, no_place, revivals)).items():
                if await asyncio.to_thread(ends_within, every_s, partial(ray.kill, there[name])):
                    log.error("%s is not started again: %s", name, cause)
                    given_up.add(name)
        except Exception as error:
            if (said := str(error)) not in told:
                log.warning("how often actors were started again cannot be looked at: %s", said or type(error).__name__)
                told.add(said)


async def _to_be_ended(actors: Mapping[str, Any], no_place: NoPlace, revivals: Revivals) -> dict[str, str]:
    """Names, with why."""
    states, why = await asyncio.to_thread(_look, actors, no_place)
    often = revivals.too_many({name: state["NumRestarts"] for name, state in states.items()}, monotonic())
    ending = dict.fromkeys(often, f"it died {revivals.most + 1} times within an hour")
    away = [name for name, state in states.items() if state["State"] == "RESTARTING"]
    return ending | {name: why[name] for name in away if name in why}


def _look(actors: Mapping[str, Any], no_place: NoPlace) -> tuple[dict[str, dict[str, Any]], Mapping[str, str]]:
    """What Ray knows of each, and for whom there is no place. A Ray whose head is gone is not asked: see notices."""
    if why_head_silent():
        return {}, {}
    try:
        table, why = own_actors(), no_place()
    except RayError:  # its head has just gone
        return {}, {}
    ids = {name: actor._actor_id.hex() for name, actor in actors.items()}
    return {name: table[found] for name, found in ids.items() if found in table}, why
