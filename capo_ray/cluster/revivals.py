"""How often an actor that dies is started again: so many times an hour, not over the life of a run.

Ray starts it again whenever it dies, while engines start too. One that dies too often is ended here for good, which is
then a loss like another (restarts, critics.routing). Leaves out waiting for one that starts again (patience).
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
from capo_ray.cluster.session import head_address, own_actors
from capo_ray.planning.machine import why_silent

log = logging.getLogger(__name__)

MOST, WITHIN_S = 3, 3600.0
EVERY_S = 5.0


class Revivals:
    """When actors were started again, as far as that matters."""

    def __init__(self, *, most: int = MOST, within_s: float = WITHIN_S) -> None:
        self.most, self._within_s = most, within_s
        self._counted: dict[str, int] = defaultdict(int)
        self._times: dict[str, list[float]] = defaultdict(list)

    def too_many(self, counts: Mapping[str, int], now_s: float) -> list[str]:
        """Who was started again more than `most` times within `within_s`, given how often each was by now."""
        for name, count in counts.items():
            self._times[name] += [now_s] * (count - self._counted[name])
            self._counted[name] = count
            self._times[name] = [time_s for time_s in self._times[name] if time_s > now_s - self._within_s]
        return [name for name in counts if len(self._times[name]) > self.most]


async def limit(
    actors: Callable[[], Mapping[str, Any]], *, every_s: float = EVERY_S, revivals: Revivals | None = None
) -> None:
    """Look at `actors`, by name, until cancelled."""
    revivals, given_up = revivals or Revivals(), set[str]()
    while True:
        await asyncio.sleep(every_s)
        there = {name: actor for name, actor in actors().items() if name not in given_up}
        for name in revivals.too_many(await asyncio.to_thread(_counts, there), monotonic()):
            log.error("%s died %d times within an hour: it is not started again", name, revivals.most + 1)
            given_up.add(name)
            await asyncio.to_thread(ends_within, every_s, partial(ray.kill, there[name]))


def _counts(actors: Mapping[str, Any]) -> dict[str, int]:
    """How often Ray has started each again. A Ray whose head is gone is not asked: see notices."""
    if why_silent(head_address()):
        return {}
    try:
        table = own_actors()
    except RayError:  # its head has just gone
        return {}
    ids = {name: actor._actor_id.hex() for name, actor in actors.items()}
    return {name: table[found]["NumRestarts"] for name, found in ids.items() if found in table}
