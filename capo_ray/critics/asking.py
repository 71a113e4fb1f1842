"""One critic and the engines that run it: sends a request, bounds its time, and tries again elsewhere.

A failure is a value, never an exception: who asks decides what becomes of it. A request keeps its seed whichever engine
answers it, and one that was given up is cancelled, so that no answer counts twice. Where no engine is up, requests
wait, and are no worse for having tried one that was down; after the patience of the routing they are given up as
`Outage`. Leaves out which engine is asked (routing), what is asked and how replies are read (service).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.critics.routing import Member, Pool, Routing, Ticket
from capo_ray.engines.protocols import CriticEngine, EngineBusy, Message, PromptTooLong, Replies
from capo_ray.types import CritiqueOutcome, Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """How often a request is tried."""

    attempts: int = 3
    """Tries of one request, each on another engine as long as there are."""
    backoff_s: float = 0.5
    """Seconds before the second try; twice as many before each further one."""


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

    def ticket(self) -> Ticket:
        prompt_tokens = sum(len(message["content"]) for message in self.messages) // 4
        tokens = self.n * self.sampling.max_tokens + prompt_tokens
        return Ticket(tokens=tokens, prefix=self.prefix, prefers=self.prefers, longest=self.sampling.max_tokens)


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


Answer = tuple[Replies, str]
"""The replies and the name of the engine that gave them."""


class Line:
    """Asks one critic."""

    def __init__(self, engines: Sequence[CriticEngine], routing: Routing, retrying: Retrying) -> None:
        if not engines:
            raise ValueError("critics need at least one engine")
        self.pool = Pool(engines, routing)
        self.retries = 0
        """Tries after the first, of all requests."""
        self._retrying = retrying

    async def ask(self, request: Request) -> Answer | Failure | Outage:
        """Send `request` to one engine after the other until one answers.

        What an engine that is down or busy says of it is no attempt: the wait is bounded by the pool's patience.
        """
        ticket = request.ticket()
        failures = 0
        while True:
            member = await self.pool.enter(ticket)
            if member is None:
                return Outage(self.pool.last_failure)
            self.retries += len(ticket.tried) > 1
            answer = await self._try(request, ticket, member)
            if isinstance(answer, Replies):
                return answer, member.engine.name
            if isinstance(answer, _Busy):
                continue
            if answer.outcome == "refused":
                return answer
            log.info("critic %s failed on %s: %s", member.engine.name, request.key, answer.cause)
            if ticket.is_probe and self.pool.is_down:
                continue
            failures += 1
            if failures == self._retrying.attempts:
                return answer
            await asyncio.sleep(self._retrying.backoff_s * 2 ** (failures - 1))

    async def _try(self, request: Request, ticket: Ticket, member: Member) -> Replies | Failure | _Busy:
        """One try on one engine; frees its seat and tells the pool how the engine did."""
        try:
            answer = await self._complete(request, member.engine, self.pool.deadline_s(ticket, member))
        except BaseException:
            self.pool.leave(ticket, member)
            raise
        if isinstance(answer, Replies):
            longest = max((completion.num_tokens for completion in answer.completions), default=0)
            self.pool.answered(ticket, member, longest=longest)
        elif isinstance(answer, _Busy):
            self.pool.busy(ticket, member, answer.cause, answer.wait_s)
        elif answer.outcome == "refused":
            self.pool.leave(ticket, member)
        else:
            self.pool.failed(ticket, member, answer.cause, timeout=answer.outcome == "timeout")
        return answer

    async def _complete(self, request: Request, engine: CriticEngine, deadline_s: float) -> Replies | Failure | _Busy:
        """The boundary at which an engine's errors become values."""
        try:
            async with asyncio.timeout(deadline_s):
                replies = await engine.complete(request.messages, request.sampling, n=request.n, seed=request.seed)
        except PromptTooLong as error:
            return Failure("refused", str(error), engine.name)
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
        if len(replies.completions) != request.n:
            cause = f"asked for {request.n} completions, it gave {len(replies.completions)}"
            return Failure("engine_error", cause, engine.name)
        return replies
