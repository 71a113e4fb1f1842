"""The judging service without Ray: what critics are asked, for how long, and what becomes of a failure.

It sees critics as the protocol CriticEngine, so that races and failures are tested on fakes. The k critiques of a
response are one request to one engine; the responses of one problem prefer the engine that has their common prefix in
its cache. A failed critique is a typed outcome, never an exception and never a zero; too many of them in a row of
critiques are an exception, `CriticsFailed`, that stops the run. A request keeps its seed whichever engine answers it.

Leaves out: which engine a request goes to (see `routing`), starting engines (see `cluster`), voting (see `credit`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import get_args

from capo_ray.credit.critique import Messages, Reference, Template, fingerprint, messages
from capo_ray.credit.reply import contradicts_itself, parse
from capo_ray.engines.protocols import CriticEngine, PromptTooLong, Replies
from capo_ray.routing import Member, Pool, Routing, Ticket
from capo_ray.types import FAILED_OUTCOMES, Critique, CritiqueOutcome, Metrics, Sampling

log = logging.getLogger(__name__)


class CriticsFailed(RuntimeError):
    """More critiques failed than the run allows; the message has the counts and the last cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSettings:
    """How critics are asked and how much failure is borne."""

    critiques: int = 4
    """k: critiques per response."""
    template: Template = "paper"
    max_critique_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 0.9
    max_sequences: int = 256
    """Critiques in flight per engine."""
    deadline_s: float = 600.0
    """Seconds that one try on one engine may take, from when it is sent."""
    attempts: int = 3
    """Tries of one request, each on another engine as long as there are."""
    break_after: int = 3
    """Failures in a row after which an engine is left alone."""
    break_pause_s: float = 30.0
    """Seconds until it is tried again, with one request."""
    outage_s: float = 60.0
    """Seconds that requests wait while every engine is left alone; then they fail."""
    prefix_slack: int = 4
    """Requests by which the engine that has the prefix may be busier than the idlest one."""
    max_failed_share: float = 0.5
    failure_window: int = 256
    """Critiques over which the failed share is taken."""

    @property
    def routing(self) -> Routing:
        return Routing(
            room=max(1, self.max_sequences // max(1, self.critiques)),
            prefix_slack=self.prefix_slack,
            break_after=self.break_after,
            break_pause_s=self.break_pause_s,
            outage_s=self.outage_s,
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_tokens=self.max_critique_tokens, temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class _Request:
    """One response to be judged."""

    messages: Messages
    num_critiques: int
    seed: int
    key: str
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a request brought no replies."""

    outcome: CritiqueOutcome
    cause: str
    critic: str = ""


class Critics:
    """Judges responses with a pool of critic engines."""

    def __init__(self, engines: Sequence[CriticEngine], settings: CriticSettings) -> None:
        if not engines:
            raise ValueError("critics need at least one engine")
        self._settings = settings
        self._pool = Pool(engines, settings.routing)
        self._recent: deque[CritiqueOutcome] = deque(maxlen=settings.failure_window)
        self._last_failure = ""
        self._totals = _no_totals()

    async def judge(
        self,
        question: str,
        reference: Reference,
        steps: Sequence[str],
        *,
        response_key: str,
        seed: int,
        k: int | None = None,
    ) -> tuple[Critique, ...]:
        """`k` critiques (the settings' number by default) of the response whose steps show as `steps`.

        Always so many, in the critic's order, whatever happens to them; `response_key` names the response in the log.
        Raises CriticsFailed when the share of failed critiques is above what the settings bear.
        """
        num_critiques = self._settings.critiques if k is None else k
        asked = messages(question, reference, steps, template=self._settings.template)
        tokens = num_critiques * self._settings.max_critique_tokens + sum(len(m["content"]) for m in asked) // 4
        ticket = Ticket(tokens=tokens, prefix=(question, reference))
        request = _Request(asked, num_critiques, seed, response_key, ticket)
        start = monotonic()
        answer = await self._ask(request)
        self._totals["seconds"] += monotonic() - start
        if isinstance(answer, _Failure):
            failed = Critique(text="", outcome=answer.outcome, critic=answer.critic)
            critiques = (failed,) * num_critiques
        else:
            critic = ticket.tried[-1].engine.name
            critiques = tuple(
                parse(reply.text, len(steps), truncated=reply.truncated, critic=critic, num_tokens=reply.num_tokens)
                for reply in answer.completions
            )
        shown = fingerprint(asked)
        critiques = tuple(replace(c, seed=seed + i, prompt_hash=shown) for i, c in enumerate(critiques))
        self._count(critiques, answer)
        self._check_failures()
        return critiques

    def metrics(self) -> Metrics:
        """Sums since the last call, and the share of critiques that were valid among those that could be."""
        totals, self._totals = self._totals, _no_totals()
        valid = totals["outcome_ok"]
        judged = valid + sum(totals[f"outcome_{outcome}"] for outcome in FAILED_OUTCOMES)
        if judged:
            totals["valid_share"] = valid / judged
        return totals | {"engines_down": float(self._pool.num_down)}

    async def _ask(self, request: _Request) -> Replies | _Failure:
        """Send `request` to one engine after the other until one answers."""
        answer: Replies | _Failure | None = None
        for _ in range(self._settings.attempts):
            member = await self._pool.enter(request.ticket)
            if member is None:
                return answer or _Failure("engine_error", f"every critic is down; {self._pool.last_failure}")
            self._totals["retries"] += len(request.ticket.tried) > 1
            answer = await self._try(request, member)
            if isinstance(answer, Replies) or answer.outcome == "refused":
                break
            log.info("critic %s failed on response %s: %s", member.engine.name, request.key, answer.cause)
        assert answer is not None
        return answer

    async def _try(self, request: _Request, member: Member) -> Replies | _Failure:
        """One try on one engine; frees its seat and tells the pool how the engine did."""
        try:
            answer = await self._complete(request, member.engine)
        except BaseException:
            self._pool.leave(request.ticket, member)
            raise
        if isinstance(answer, Replies):
            self._pool.leave(request.ticket, member, success=True)
        else:
            self._pool.leave(request.ticket, member, failure=None if answer.outcome == "refused" else answer.cause)
        return answer

    async def _complete(self, request: _Request, engine: CriticEngine) -> Replies | _Failure:
        """The boundary at which an engine's errors become outcomes."""
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                replies = await engine.complete(
                    request.messages, self._settings.sampling, n=request.num_critiques, seed=request.seed
                )
        except PromptTooLong as error:
            return _Failure("refused", str(error), engine.name)
        except TimeoutError:
            return _Failure("timeout", f"no answer within {self._settings.deadline_s:g} s", engine.name)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _Failure("engine_error", "the engine cancelled the request", engine.name)
        except Exception as error:
            return _Failure("engine_error", f"{type(error).__name__}: {error}", engine.name)
        if len(replies.completions) != request.num_critiques:
            cause = f"asked for {request.num_critiques} completions, it gave {len(replies.completions)}"
            return _Failure("engine_error", cause, engine.name)
        return replies

    def _count(self, critiques: Sequence[Critique], answer: Replies | _Failure) -> None:
        totals = self._totals
        totals["responses"] += 1
        if isinstance(answer, Replies):
            totals["prompt_tokens"] += answer.prompt_tokens
            totals["cached_prompt_tokens"] += answer.cached_tokens
        for critique in critiques:
            totals[f"outcome_{critique.outcome}"] += 1
            totals["critique_tokens"] += critique.num_tokens
            totals["contradictions"] += contradicts_itself(critique)
            totals["dropped_indices"] += critique.num_dropped
            if critique.outcome == "ok" or critique.outcome in FAILED_OUTCOMES:
                self._recent.append(critique.outcome)
            if critique.outcome in FAILED_OUTCOMES:
                self._last_failure = (
                    answer.cause if isinstance(answer, _Failure) else f"a reply that ends in {critique.text[-200:]!r}"
                )

    def _check_failures(self) -> None:
        settings = self._settings
        failed = Counter(outcome for outcome in self._recent if outcome != "ok")
        if failed.total() > settings.max_failed_share * settings.failure_window:
            kinds = ", ".join(f"{outcome} {count}" for outcome, count in failed.most_common())
            raise CriticsFailed(
                f"{failed.total()} of the last {len(self._recent)} critiques failed ({kinds}); "
                f"{settings.max_failed_share:.0%} of {settings.failure_window} may. Last: {self._last_failure}"
            )


_SUMS = ("responses", "retries", "seconds", "critique_tokens", "prompt_tokens", "cached_prompt_tokens")
_COUNTS = ("contradictions", "dropped_indices", *(f"outcome_{outcome}" for outcome in get_args(CritiqueOutcome)))


def _no_totals() -> Metrics:
    return dict.fromkeys((*_SUMS, *_COUNTS), 0.0)
