"""One critic and the engines that run it: sends a request, bounds its time, and tries again elsewhere.

A failure is a value, never an exception: who asks decides what becomes of it. A request keeps its seed whichever engine
answers it, and one that was given up is cancelled, so that no answer counts twice. An engine that is broken is asked a
question of its own after every pause, until it answers: no request waits for it or fails by it, and what it has in hand
is given up once it hangs, or leaves that question unanswered. Where no engine is up, requests wait; after the patience
of the routing they are given up as `Outage`. Leaves out which engine is asked (routing), what is asked and how replies
are read (service).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capo_ray.critics.routing import Member, Pool, Ticket
from capo_ray.critics.settings import CriticSettings
from capo_ray.engines.protocols import CriticEngine, EngineBusy, Message, PromptTooLong, Replies, RequestRejected
from capo_ray.types import CritiqueOutcome, Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to be completed `n` times."""

    messages: Sequence[Message]
    sampling: Sampling
    n: int
    seed: int
    key: str
    """What it is about, for the log."""
    prefix: str
    """Equal for requests that share a long prefix."""
    prefers: str = ""
    """Name of the engine that has all of it in its cache."""
    tried_again: Callable[[], object] = lambda: None
    """Called at each try after the first."""

    def ticket(self) -> Ticket:
        return Ticket(prefix=self.prefix, prefers=self.prefers, longest=self.sampling.max_tokens)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request brought no replies."""

    outcome: CritiqueOutcome
    cause: str
    critic: str = ""


@dataclass(frozen=True, slots=True)
class Outage:
    """No engine was up for as long as the routing's patience lasts."""

    cause: str


@dataclass(frozen=True, slots=True)
class _Busy:
    cause: str
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """The engine was found broken meanwhile, which is no fault of the request."""


@dataclass(frozen=True, slots=True)
class _Rejected:
    """The engine refuses this very request."""

    failure: Failure


Answer = tuple[Replies, str]
"""The replies and the name of the engine that gave them."""


_PING: Sequence[Message] = ({"role": "user", "content": "Is 1 + 1 = 2? Answer Yes or No."},)
_PING_SAMPLING = Sampling(max_tokens=16)


class Line:
    """Asks one critic."""

    def __init__(self, engines: Sequence[CriticEngine], settings: CriticSettings, *, room: int) -> None:
        """`room`: requests in flight per engine, at most."""
        if not engines:
            raise ValueError("critics need at least one engine")
        self.pool = Pool(engines, settings, room=room)
        self._settings = settings
        self._reviving: dict[Member, asyncio.Task[None]] = {}
        self._limits: dict[Member, set[asyncio.Timeout]] = {member: set() for member in self.pool.members}
        """The time limits of what each has in hand."""

    async def ask(self, request: Request) -> Answer | Failure | Outage:
        """Send `request` to one engine after the other until one answers.

        A try at an engine that says it is busy, or that was given up with its engine, is no attempt: the wait is
        bounded by the pool's patience. What one engine rejects is sent to another if there is one, and neither is worse
        for it.
        """
        ticket = request.ticket()
        failures = rejections = 0
        while True:
            member = await self.pool.enter(ticket)
            if member is None:
                return Outage(self.pool.last_failure)
            if len(ticket.tried) > 1:
                request.tried_again()
            answer = await self._try(request, ticket, member)
            if isinstance(answer, Replies):
                return answer, member.engine.name
            if isinstance(answer, _Busy | _GivenUp):
                continue
            if isinstance(answer, _Rejected):
                failures, rejections = failures + 1, rejections + 1
                if failures == self._settings.attempts or rejections == len(self.pool.members):
                    return answer.failure
                continue
            if answer.outcome == "refused":
                return answer
            log.info("critic %s failed on %s: %s", member.engine.name, request.key, answer.cause)
            failures += 1
            if failures == self._settings.attempts:
                return answer
            await asyncio.sleep(self._settings.backoff_s * 2 ** (failures - 1))

    async def _try(
        self, request: Request, ticket: Ticket, member: Member
    ) -> Replies | Failure | _Busy | _GivenUp | _Rejected:
        """One try on one engine; frees its seat and tells the pool how the engine did."""
        try:
            answer = await self._complete(request, member, self.pool.deadline_s(ticket, member))
        except BaseException:
            self.pool.leave(ticket, member)
            raise
        if isinstance(answer, Replies):
            longest = max((completion.num_tokens for completion in answer.completions), default=0)
            self.pool.answered(ticket, member, longest=longest)
        elif isinstance(answer, _Busy):
            self.pool.busy(ticket, member, answer.cause, answer.wait_s)
        elif isinstance(answer, _Rejected) or answer.outcome == "refused":
            self.pool.leave(ticket, member)
        elif member.health.is_broken and answer.outcome == "timeout":
            self.pool.leave(ticket, member)
            return _GivenUp()
        else:
            self.pool.failed(ticket, member, answer.cause, timeout=answer.outcome == "timeout")
            if member.health.is_broken and answer.outcome == "timeout":
                self._give_up(member)
            if member.health.is_broken and member not in self._reviving:
                self._reviving[member] = asyncio.create_task(self._revive(member))
        return answer

    def _give_up(self, member: Member) -> None:
        """End what a broken engine has in hand: it hangs."""
        for limit in self._limits[member]:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    async def _revive(self, member: Member) -> None:
        """Ask a broken engine after every pause whether it is there; whatever it says, it is."""
        ping = Request(_PING, _PING_SAMPLING, n=1, seed=0, key="ping", prefix="")
        try:
            while member.health.is_broken:
                if (wait := member.health.pause_s(asyncio.get_running_loop().time())) > 0:
                    await asyncio.sleep(wait)
                    continue
                answer = await self._complete(ping, member, self._settings.ping_s)
                if not isinstance(answer, Failure) or answer.outcome == "refused":
                    self.pool.up(member)
                elif member.health.is_broken:  # no request was answered meanwhile
                    self.pool.still_broken(member, answer.cause)
                    self._give_up(member)
        finally:
            del self._reviving[member]

    async def _complete(
        self, request: Request, member: Member, deadline_s: float
    ) -> Replies | Failure | _Busy | _Rejected:
        """The boundary at which an engine's errors become values."""
        engine, limits = member.engine, self._limits[member]
        try:
            async with asyncio.timeout(deadline_s) as limit:
                limits.add(limit)
                replies = await engine.complete(request.messages, request.sampling, n=request.n, seed=request.seed)
        except PromptTooLong as error:
            return Failure("refused", str(error), engine.name)
        except RequestRejected as error:
            return _Rejected(Failure("engine_error", str(error), engine.name))
        except EngineBusy as error:
            return _Busy(str(error), error.retry_after_s)
        except TimeoutError:
            return Failure("timeout", f"no answer within {deadline_s:g} s", engine.name)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Failure("engine_error", "the engine cancelled the request", engine.name)
        except Exception as error:
            return Failure("engine_error", f"{type(error).__name__}: {error}", engine.name)
        finally:
            limits.discard(limit)
        if not isinstance(replies, Replies):  # of a user's own critic
            return Failure("engine_error", f"it gave no Replies but {type(replies).__name__}", engine.name)
        if len(replies.completions) != request.n:
            cause = f"asked for {request.n} completions, it gave {len(replies.completions)}"
            return Failure("engine_error", cause, engine.name)
        return replies
