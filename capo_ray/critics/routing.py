"""Which critic engine a request goes to, and how long it may take: by load, by prefix, by speed and by health.

Requests queue together, first come first served, and are seated at engines that are up and have room; so a slow engine
gets less and a dead one nothing. Load is counted in outstanding tokens, speed is measured on the answers. An engine
that fails several times in a row gets nothing until it is said to be up again; one that says that it is busy is left
alone for a while, then tried with one request at a time until one succeeds. Time is the event loop's. Leaves out:
sending and retrying, and finding out who is up again (see `asking`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from capo_ray.critics.settings import CriticSettings
from capo_ray.engines.protocols import CriticEngine

log = logging.getLogger(__name__)

_MOST_HOMES = 4096
_MARGIN_S = 0.001  # timers may fire early by the clock's resolution
_NEWS = 0.2
"""Weight of the newest answer in an engine's measured pace."""
_SLACK = 4.0
"""Times the expected time that a request is given."""
_GROWTH = 0.25
"""Requests by which an engine's room grows with every answer, after it was cut."""
_TINY = 1e-9
_TOLERANCE = 1.5
"""Times the fastest engine's pace that count as equally fast."""


@dataclass(slots=True, eq=False)
class Member:
    """One engine and what is known of its load, speed and health."""

    engine: CriticEngine
    room: float
    """Requests that it takes at a time: fewer where it is slower than others or said that it is busy, then more."""
    in_flight: int = 0
    outstanding_tokens: int = 0
    failures_in_row: int = 0
    retry_at: float | None = None
    """Left alone until then. None: healthy."""
    resting: bool = False
    """It asked to be left alone, and then gets one request at a time, the probe, until one succeeds. Answers to what it
    was sent before do not end that."""
    probing: bool = False
    pace_s: float | None = None
    """Seconds that a token of a reply takes, a running mean over answers; None: no answer yet."""
    load: float = 0.0
    """Requests in flight while that was measured, the same mean."""
    doubt: float = 1.0
    """Times slower than measured that it is taken to be since its last answer: doubled by timeouts."""
    doubted_at: float = 0.0
    """When that was doubled last: requests sent before say nothing more."""

    @property
    def is_broken(self) -> bool:
        """Whether it failed too often and has not answered since."""
        return self.retry_at is not None and not self.resting

    def admits(self, now: float) -> bool:
        return self.retry_at is None or (self.resting and now >= self.retry_at and not self.probing)

    def learn(self, seconds: float, tokens: int, in_flight: int) -> None:
        """An answer whose longest reply had `tokens` took `seconds` while `in_flight` requests ran."""
        pace = seconds / max(tokens, 1)
        if self.pace_s is None or self.doubt > 1:
            self.pace_s, self.load, self.doubt = pace, in_flight, 1.0
        else:
            self.pace_s += _NEWS * (pace - self.pace_s)
            self.load += _NEWS * (in_flight - self.load)


@dataclass(slots=True, eq=False)
class Ticket:
    """What the pool knows of one request."""

    tokens: int
    """A guess at its size, for comparing loads."""
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
        self.members = [Member(engine, room) for engine in engines]
        self.last_failure = ""
        self._settings = settings
        self._room = room
        self._queue: deque[tuple[Ticket, asyncio.Future[Member | None]]] = deque()
        self._homes: OrderedDict[Hashable, Member] = OrderedDict()
        self._down_since: float | None = None

    @property
    def num_down(self) -> int:
        """Members that are left alone or being probed."""
        return sum(member.retry_at is not None for member in self.members)

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
        if member.pace_s is None:
            return settings.deadline_s
        crowd = max(1.0, member.in_flight / max(member.load, 1.0))
        expected = _SLACK * ticket.longest * member.pace_s * member.doubt * crowd
        return min(max(expected, settings.deadline_floor_s), settings.deadline_s)

    def leave(self, ticket: Ticket, member: Member) -> None:
        """Give a seat back without news of the member."""
        member.in_flight -= 1
        member.outstanding_tokens -= ticket.tokens
        if ticket.is_probe:
            member.probing = False
        self._dispatch()

    def answered(self, ticket: Ticket, member: Member, *, longest: int) -> None:
        """The member answered; its longest reply had `longest` tokens."""
        member.learn(_now() - ticket.seated_at, longest, max(ticket.crowd, member.in_flight))
        member.room = max(1.0, min(self._fair_room(member), member.room + _GROWTH))
        member.failures_in_row, self._down_since = 0, None
        if ticket.is_probe or not member.resting:
            self.up(member)
        self.leave(ticket, member)

    def pause_s(self, member: Member) -> float:
        """Seconds that the member is left alone yet."""
        return 0.0 if member.retry_at is None else member.retry_at - _now()

    def up(self, member: Member) -> None:
        """The member is there again."""
        if member.retry_at is not None:
            log.log(logging.INFO if member.resting else logging.WARNING, "critic %s answers again", member.engine.name)
            member.retry_at, member.resting, member.failures_in_row, self._down_since = None, False, 0, None
            self._dispatch()

    def still_broken(self, member: Member, cause: str) -> None:
        """A broken member was asked whether it is up again, and is not."""
        self.last_failure = f"{member.engine.name}: {cause}"
        member.retry_at = _now() + self._settings.break_pause_s

    def failed(self, ticket: Ticket, member: Member, cause: str, *, timeout: bool = False) -> None:
        """The member failed the request. A timeout lets it count as half as fast until an answer tells; requests that
        ran side by side tell it once."""
        settings = self._settings
        self.last_failure = f"{member.engine.name}: {cause}"
        member.failures_in_row += 1
        if timeout and ticket.seated_at >= member.doubted_at and self.deadline_s(ticket, member) < settings.deadline_s:
            member.doubt, member.doubted_at = 2 * member.doubt, _now()
        if not member.is_broken and (ticket.is_probe or member.failures_in_row >= settings.break_after):
            pause, failures = settings.break_pause_s, member.failures_in_row
            log.warning("left alone for %g s after %d failures in a row: critic %s", pause, failures, self.last_failure)
            member.resting = False
            self._leave_alone(member, pause)
        self.leave(ticket, member)

    def busy(self, ticket: Ticket, member: Member, cause: str, wait_s: float | None) -> None:
        """The member is well and takes no more for `wait_s`; from then on it gets fewer requests at a time."""
        self.last_failure = f"{member.engine.name}: {cause}"
        if member.retry_at is None:
            member.room = max(1.0, min(member.room, member.in_flight) / 2)
            log.info("critic %s is busy: %s", member.engine.name, cause)
        member.resting = True
        self._leave_alone(member, self._settings.break_pause_s if wait_s is None else wait_s)
        self.leave(ticket, member)

    def _leave_alone(self, member: Member, pause_s: float) -> None:
        now, loop = _now(), asyncio.get_running_loop()
        member.retry_at = now + pause_s
        loop.call_later(pause_s + _MARGIN_S, self._dispatch)
        if self._down_since is None and self.num_down == len(self.members):
            self._down_since, patience = now, self._settings.patience_s
            loop.call_later(patience + _MARGIN_S, self._dispatch)
            if not member.resting:
                log.error("every critic is down; requests wait for one to come back, %g s at most", patience)

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
            member.outstanding_tokens += ticket.tokens
            ticket.seated_at, ticket.crowd = now, member.in_flight
            ticket.is_probe = member.probing = member.retry_at is not None
            seat.set_result(member)
        self._queue.extendleft(reversed(waiting))
        probing = any(member.probing for member in self.members)  # its answer decides about the others
        if self._down_since is not None and now >= self._down_since + self._settings.patience_s and not probing:
            while self._queue:
                _, seat = self._queue.popleft()
                if not seat.done():
                    seat.set_result(None)

    def _has_room(self, member: Member, now: float) -> bool:
        return member.admits(now) and member.in_flight < round(member.room)

    def _fair_room(self, member: Member) -> float:
        """Less than all for a member that is clearly slower than the fastest, so that it is not the last to be done."""
        fastest = min(other.pace_s for other in self.members if other.pace_s is not None)
        return self._room * min(1.0, _TOLERANCE * max(fastest, _TINY) / max(member.pace_s or 0.0, _TINY))

    def _choose(self, ticket: Ticket, now: float) -> Member | None:
        """The idlest member that has not failed this request, or the one that has its prefix unless that is busier."""
        up = [member for member in self.members if member.admits(now)]
        eligible = [member for member in up if member not in ticket.tried] or up
        free = [member for member in eligible if self._has_room(member, now)]
        if not free:
            return None
        best = min(free, key=lambda member: member.outstanding_tokens)
        home = self._homes.pop(ticket.prefix, best)
        home = next((member for member in free if member.engine.name == ticket.prefers), home)
        slack = self._settings.prefix_slack * ticket.tokens
        if home in free and home.outstanding_tokens <= best.outstanding_tokens + slack:
            best = home
        self._homes[ticket.prefix] = best
        if len(self._homes) > _MOST_HOMES:
            self._homes.popitem(last=False)
        return best


def _now() -> float:
    return asyncio.get_running_loop().time()
