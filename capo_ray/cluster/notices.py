"""Machines that are told to go, seen while there is time to leave them.

Ray on a machine that is told to end (SIGTERM to `ray start --block`) has itself drained first: it stays for its grace
period, and takes nothing new. Ray's autoscaler drains machines too. Leaves out what a run does then (training.run), and
machines that go without a word (restarts).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state

from capo_ray.cluster.nodes import name_of
from capo_ray.cluster.session import own_actors, why_head_silent

LOOK_S = 2.0
HEAD = "node:__internal_head__"
"""The resource by which Ray marks the machine of its head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """That machines of a run go."""

    machines: tuple[str, ...]
    within_s: float | None
    """Until the first of them is ended; None: nobody has said."""
    for_good: bool
    """Whether Ray's head or this program is on one of them, so that the run cannot go on without it."""

    def __str__(self) -> str:
        when = "" if self.within_s is None else f" within {self.within_s:.0f} s"
        return f"{' and '.join(self.machines)} {'is' if len(self.machines) == 1 else 'are'} told to go{when}"


def told_to_go() -> dict[str, int]:
    """Ray's ids of machines, and when each is ended in ms since 1970; 0: nobody has said."""
    return dict(state.state.get_draining_nodes())


async def notice(*, look_s: float = LOOK_S) -> Notice:
    """Wait until a machine is told to go on which are actors of this program, the program itself or Ray's head."""
    while (found := await asyncio.to_thread(_look)) is None:
        await asyncio.sleep(look_s)
    return found


def _look() -> Notice | None:
    """Ray is not asked where its head is gone or frozen: a call that waits for it has no end."""
    if why_head_silent() or not (going := told_to_go()):
        return None
    used = {actor["Address"]["NodeID"] for actor in own_actors(alive=True).values()}
    return concerning(going, ray.nodes(), used, ray.get_runtime_context().get_node_id(), now_s=time.time())


def concerning(
    going: Mapping[str, int], nodes: Sequence[Mapping[str, Any]], used: Collection[str], here: str, *, now_s: float
) -> Notice | None:
    """What `going` says of a program that is on machine `here`, with actors on those that are `used`. `nodes` as
    `ray.nodes()` has them."""
    vital = {here, *(node["NodeID"] for node in nodes if HEAD in node["Resources"])}
    mine = [node for node in nodes if node["NodeID"] in going and node["NodeID"] in {*used, *vital}]
    if not mine:
        return None
    ends = [going[node["NodeID"]] for node in mine if going[node["NodeID"]]]
    return Notice(
        machines=tuple(name_of(node, nodes) for node in mine),
        within_s=max(0.0, min(ends) / 1000 - now_s) if ends else None,
        for_good=any(node["NodeID"] in vital for node in mine),
    )
