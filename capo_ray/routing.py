"""Which critic engine a request goes to: by load, by prefix and by health.

Requests queue together, first come first served, and are seated at engines that are up and have room; so a slow engine
gets less and a dead one nothing. Load is counted in outstanding tokens. An engine that fails several times in a row is
left alone for a while, then tried with one request at a time until one succeeds. Leaves out: sending and retrying (see
`critics`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from capo_ray.engines.protocols import CriticEngine

log = logging.getLogger(__name__)

_MOST_HOMES = 4096
_MARGIN_S = 0.001  # timers may fire early by the clock's resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How engines are loaded and left alone."""

    room: int
    """Requests in flight per engine."""
    prefix_slack: int = 4
    """Requests by which the engine that has the prefix may be busier than the idlest one."""
    break_after: int = 3
    """Failures in a row after which an engine is left alone."""
    break_pause_s: float = 30.0
    """Seconds until it is tried again."""
    outage_s: float = 60.0
    """Seconds that requests queue while every engine is left alone; then they are sent away."""


@dataclass(slots=True, eq=False)
class Member:
    """One engine and what is known of its load and health."""

    engine: CriticEngine
    in_flight: int = 0
    outstanding_tokens: int = 0
    failures_in_row: int = 0
    retry_at: float | None = None
    """Left alone until then; afterwards one request at a time, the probe, until one succeeds. None: healthy."""
    probing: bool = False

    def admits(self, now: float) -> bool:
        return self.retry_at is None or (now >= self.retry_at and not self.probing)


@dataclass(slots=True, eq=False)
class Ticket:
    """What the pool knows of one request."""

    tokens: int
    """A guess at its size, for comparing loads."""
    prefix: Hashable
    """Equal for requests that share a long prefix."""
    tried: list[Member] = field(default_factory=list)
    """The members that it was seated at, in order; all but the last failed it."""
    is_probe: bool = False
    """Whether its seat is that of the one request that tries a member again."""


class Pool:
    """Seats tickets at members. Lives on one event loop."""

    def __init__(self, engines: Sequence[CriticEngine], routing: Routing) -> None:
        self.members = [Member(engine) for engine in engines]
        self.last_failure = ""
        self._routing = routing
        self._queue: deque[tuple[Ticket, asyncio.Future[Member | None]]] = deque()
        self._homes: OrderedDict[Hashable, Member] = OrderedDict()
        self._down_since: float | None = None

    @property
    def num_down(self) -> int:
        """Members that are left alone or being probed."""
        return sum(member.retry_at is not None for member in self.members)

    async def enter(self, ticket: Ticket) -> Member | None:
        """Queue for a seat; None when every member has been down for too long. A seat is given back with `leave`."""
        seat: asyncio.Future[Member | None] = asyncio.get_running_loop().create_future()
        self._queue.append((ticket, seat))
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

    def leave(self, ticket: Ticket, member: Member, *, success: bool = False, failure: str | None = None) -> None:
        """Give a seat back; `success` or the cause of a `failure` tell the member's health, neither tells nothing."""
        member.in_flight -= 1
        member.outstanding_tokens -= ticket.tokens
        if ticket.is_probe:
            member.probing = False
        if success:
            if member.retry_at is not None:
                log.warning("critic %s answers again", member.engine.name)
            member.failures_in_row, member.retry_at, self._down_since = 0, None, None
        elif failure is not None:
            self.last_failure = f"{member.engine.name}: {failure}"
            member.failures_in_row += 1
            if ticket.is_probe or member.failures_in_row >= self._routing.break_after:
                self._leave_alone(member)
        self._dispatch()

    def _leave_alone(self, member: Member) -> None:
        now, pause, outage = monotonic(), self._routing.break_pause_s, self._routing.outage_s
        loop = asyncio.get_running_loop()
        if member.retry_at is None:
            failures = member.failures_in_row
            log.warning("left alone for %g s after %d failures in a row: critic %s", pause, failures, self.last_failure)
        member.retry_at = now + pause
        loop.call_later(pause + _MARGIN_S, self._dispatch)
        if self._down_since is None and self.num_down == len(self.members):
            self._down_since = now
            loop.call_later(outage + _MARGIN_S, self._dispatch)
            log.error("every critic is down; requests wait %g s for one to come back", outage)

    def _dispatch(self) -> None:
        """Seat whoever can be seated; when every member has been down for too long, send the others away."""
        now = monotonic()
        waiting: list[tuple[Ticket, asyncio.Future[Member | None]]] = []
        while self._queue and any(self._has_room(member, now) for member in self.members):
            ticket, seat = self._queue.popleft()
            if seat.done():  # cancelled in the queue
                continue
            if (member := self._choose(ticket, now)) is None:
                waiting.append((ticket, seat))
                continue
            member.in_flight += 1
            member.outstanding_tokens += ticket.tokens
            ticket.is_probe = member.probing = member.retry_at is not None
            seat.set_result(member)
        self._queue.extendleft(reversed(waiting))
        if self._down_since is not None and now >= self._down_since + self._routing.outage_s:
            while self._queue:
                _, seat = self._queue.popleft()
                if not seat.done():
                    seat.set_result(None)

    def _has_room(self, member: Member, now: float) -> bool:
        return member.admits(now) and member.in_flight < self._routing.room

    def _choose(self, ticket: Ticket, now: float) -> Member | None:
        """The idlest member that has not failed this request, or the one that has its prefix unless that is busier."""
        up = [member for member in self.members if member.admits(now)]
        eligible = [member for member in up if member not in ticket.tried] or up
        free = [member for member in eligible if self._has_room(member, now)]
        if not free:
            return None
        best = min(free, key=lambda member: member.outstanding_tokens)
        home = self._homes.pop(ticket.prefix, best)
        slack = self._routing.prefix_slack * ticket.tokens
        if home in free and home.outstanding_tokens <= best.outstanding_tokens + slack:
            best = home
        self._homes[ticket.prefix] = best
        if len(self._homes) > _MOST_HOMES:
            self._homes.popitem(last=False)
        return best
