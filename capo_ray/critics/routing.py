"""Which critic engine a request goes to, and how long it may take: by load, by prefix, by pace and by health.

Requests queue together, first come first served, and are seated at engines that are up and have room; so a slow engine
gets less and a dead one nothing. An engine that fails several times in a row gets nothing until it is said to be up
again; one that says that it is busy is left alone for a while, then tried with one request at a time until one
succeeds. Time is the event loop's. Leaves out: which states an engine can be in (health), how its speed is measured
(pace), sending and retrying, and finding out who is up again (asking).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from capo_ray.critics.health import Health, State
from capo_ray.critics.pace import Pace
from capo_ray.critics.settings import CriticSettings
from capo_ray.engines.protocols import CriticEngine

log = logging.getLogger(__name__)

_MOST_HOMES = 4096
_MARGIN_S = 0.001  # timers may fire early by the clock's resolution
_SLACK = 4.0
"""Times the expected time that a request is given."""
_GROWTH = 0.25
"""Requests by which an engine's room grows with every answer, after it was cut."""


@dataclass(slots=True, eq=False)
class Member:
    """One engine and what is known of it."""

    engine: CriticEngine
    room: float
    """Requests that it takes at a time: fewer where it is slower than others or said that it is busy, then more."""
    health: Health
    pace: Pace = field(default_factory=Pace)
    in_flight: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """What the pool knows of one request."""

    prefix: Hashable
    """Equal for requests that share a long prefix."""
    prefers: str = ""
    """Name of the engine that has the whole prompt in its cache; goes before the prefix, and bears the same slack."""
    longest: int = 0
    """Tokens of the longest reply that it may bring."""
    tried: list[Member] = field(default_factory=list)
    """The members that it was seated at, in order; all but the last failed it."""
    is_probe: bool = False
    """Whether its seat is that of the one request that tries a member after its rest."""
    seated_at: float = 0.0
    crowd: int = 0
    """Requests in flight at its member then, itself among them."""


class Pool:
    """Seats tickets at members. Lives on one event loop."""

    def __init__(self, engines: Sequence[CriticEngine], settings: CriticSettings, *, room: int) -> None:
        """`room`: requests in flight per engine, at most."""
        after, pause_s = settings.break_after, settings.break_pause_s
        self.members = [Member(engine, room, Health(break_after=after, break_pause_s=pause_s)) for engine in engines]
        self.last_failure = ""
        self._settings = settings
        self._room = room
        self._queue: deque[tuple[Ticket, asyncio.Future[Member | None]]] = deque()
        self._homes: OrderedDict[Hashable, Member] = OrderedDict()

    @property
    def num_down(self) -> int:
        """Members that are left alone or being probed."""
        return sum(not member.health.is_up for member in self.members)

    @property
    def num_waiting(self) -> int:
        """Tickets without a seat."""
        return len(self._queue)

    async def enter(self, ticket: Ticket) -> Member | None:
        """Queue for a seat; None when every member has been down for too long.

        A seat is given back with one of `leave`, `answered`, `failed` and `busy`.
        """
        seat: asyncio.Future[Member | None] = asyncio.get_running_loop().create_future()
        (self._queue.appendleft if ticket.prefers else self._queue.append)((ticket, seat))  # what was begun goes first
        self._dispatch()
        try:
            member = await seat
        except asyncio.CancelledError:
            if seat.done() and not seat.cancelled() and (member := seat.result()):  # seated while being cancelled
                self.leave(ticket, member)
            raise
        if member is not None:
            ticket.tried.append(member)
        return member

    def deadline_s(self, ticket: Ticket, member: Member) -> float:
        """Seconds for a request that was just seated: what its longest reply takes at the member's pace and load."""
        settings = self._settings
        expected = member.pace.expected_s(ticket.longest, member.in_flight)
        if expected is None:
            return settings.deadline_s
        return min(max(_SLACK * expected, settings.deadline_floor_s), settings.deadline_s)

    def leave(self, ticket: Ticket, member: Member) -> None:
        """Give a seat back without news of the member."""
        member.in_flight -= 1
        member.health.given_up(probe=ticket.is_probe)
        self._dispatch()

    def answered(self, ticket: Ticket, member: Member, *, longest: int) -> None:
        """The member answered; its longest reply had `longest` tokens."""
        now, before = _now(), member.health.state
        member.pace.learn(now - ticket.seated_at, longest, max(ticket.crowd, member.in_flight))
        most = self._room * member.pace.share(other.pace for other in self.members)
        member.room = max(1.0, min(most, member.room + _GROWTH))
        member.health.answered(now, probe=ticket.is_probe)
        if member.health.is_up:
            _tell(member, before)
        else:
            self._look_again(self._settings.patience_s)
        self.leave(ticket, member)

    def up(self, member: Member) -> None:
        """The member was asked whether it is there, and is."""
        before = member.health.state
        member.health.is_there()
        _tell(member, before)
        self._dispatch()

    def still_broken(self, member: Member, cause: str) -> None:
        """A broken member was asked whether it is there, and is not."""
        self.last_failure = f"{member.engine.name}: {cause}"
        member.health.is_away(_now())

    def failed(self, ticket: Ticket, member: Member, cause: str, *, timeout: bool = False) -> None:
        """The member failed the request."""
        settings, health, now = self._settings, member.health, _now()
        self.last_failure = f"{member.engine.name}: {cause}"
        if timeout and self.deadline_s(ticket, member) < settings.deadline_s:
            member.pace.timed_out(now, sent_at=ticket.seated_at)
        if health.failed(now, probe=ticket.is_probe):
            pause, failures = settings.break_pause_s, health.failures_in_row
            log.warning("left alone for %g s after %d failures in a row: critic %s", pause, failures, self.last_failure)
            if self.num_down == len(self.members):
                patience = settings.patience_s
                log.error("every critic is down; requests wait for one to come back, %g s at most", patience)
            self._look_again(settings.patience_s)
        self.leave(ticket, member)

    def busy(self, ticket: Ticket, member: Member, cause: str, wait_s: float | None) -> None:
        """The member is well and takes no more for `wait_s`; from then on it gets fewer requests at a time."""
        health, now = member.health, _now()
        self.last_failure = f"{member.engine.name}: {cause}"
        if health.is_up:
            member.room = max(1.0, min(member.room, member.in_flight) / 2)
            log.info("critic %s is busy: %s", member.engine.name, cause)
        health.busy(now, wait_s, probe=ticket.is_probe)
        self._look_again(health.pause_s(now))
        self._look_again(self._settings.patience_s)
        self.leave(ticket, member)

    def _look_again(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds + _MARGIN_S, self._dispatch)

    def _dispatch(self) -> None:
        """Seat whoever can be seated; when every member has been down for too long, send the others away."""
        now = _now()
        waiting: list[tuple[Ticket, asyncio.Future[Member | None]]] = []
        while self._queue and any(self._has_room(member, now) for member in self.members):
            ticket, seat = self._queue.popleft()
            if seat.done():  # cancelled in the queue
                continue
            if (member := self._choose(ticket, now)) is None:
                waiting.append((ticket, seat))
                continue
            member.in_flight += 1
            ticket.seated_at, ticket.crowd, ticket.is_probe = now, member.in_flight, member.health.sent()
            seat.set_result(member)
        self._queue.extendleft(reversed(waiting))
        if self._is_hopeless(now):
            while self._queue:
                _, seat = self._queue.popleft()
                if not seat.done():
                    seat.set_result(None)

    def _is_hopeless(self, now: float) -> bool:
        """Whether every member has been down for too long, and none is being tried just now."""
        healths = [member.health for member in self.members]
        if any(health.is_up or health.state == "probing" for health in healths):
            return False
        return now >= max(health.down_since for health in healths) + self._settings.patience_s

    def _has_room(self, member: Member, now: float) -> bool:
        return member.health.admits(now) and member.in_flight < round(member.room)

    def _choose(self, ticket: Ticket, now: float) -> Member | None:
        """The idlest member that has not failed this request, or the one that has its prefix unless that is busier."""
        up = [member for member in self.members if member.health.admits(now)]
        eligible = [member for member in up if member not in ticket.tried] or up
        free = [member for member in eligible if self._has_room(member, now)]
        if not free:
            return None
        best = min(free, key=lambda member: member.in_flight)
        home = self._homes.pop(ticket.prefix, best)
        home = next((member for member in free if member.engine.name == ticket.prefers), home)
        if home in free and home.in_flight <= best.in_flight + self._settings.prefix_slack:
            best = home
        self._homes[ticket.prefix] = best
        if len(self._homes) > _MOST_HOMES:
            self._homes.popitem(last=False)
        return best


def _tell(member: Member, before: State) -> None:
    """Of a member that is up, if it was not."""
    if before != "up":
        level = logging.WARNING if before == "broken" else logging.INFO
        log.log(level, "critic %s answers again", member.engine.name)


def _now() -> float:
    return asyncio.get_running_loop().time()
