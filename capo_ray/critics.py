"""The judging service without Ray: what critics are asked, for how long, and what becomes of a failure.

It sees critics as the protocol CriticEngine, so that races and failures are tested on fakes. The k critiques of a
response are one request to one engine, or one per critic where several vote; the responses of one problem prefer the
engine that has their common prefix in its cache. A failed critique is a typed outcome, never an exception and never a
zero; too many of them in a row of critiques are an exception, `CriticsFailed`, that stops the run.

Leaves out: sending and retrying (see `asking`), which engine a request goes to (see `routing`), starting engines (see
`cluster`), voting (see `credit`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal, get_args

from capo_ray.asking import Failure, Line, Outage, Request, Retrying
from capo_ray.credit.critique import Messages, Reference, Template, fingerprint, messages
from capo_ray.credit.reply import contradicts_itself, parse
from capo_ray.engines.protocols import CriticEngine
from capo_ray.routing import Routing
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
    """Most seconds that one try on one engine may take, from when it is sent."""
    deadline_floor_s: float = 30.0
    """Least seconds that one try is given, however fast the engine was."""
    attempts: int = 3
    """Tries of one request, each on another engine as long as there are."""
    backoff_s: float = 0.5
    """Seconds before the second try; twice as many before each further one."""
    break_after: int = 3
    """Failures in a row after which an engine is left alone."""
    break_pause_s: float = 30.0
    """Seconds until it is tried again, with one request."""
    outage_s: float = 60.0
    """Seconds that requests wait while every engine is left alone, before `on_outage` acts."""
    on_outage: Literal["wait", "outcome_only"] = "wait"
    """Wait on, or give critiques up as `not_asked` for as long as the outage lasts."""
    outage_limit_s: float = 3600.0
    """Seconds that are waited at most; then CriticsFailed."""
    prefix_slack: int = 4
    """Requests by which the engine that has the prefix may be busier than the idlest one."""
    max_failed_share: float = 0.5
    failure_window: int = 256
    """Critiques over which the failed share is taken."""

    def routing(self, max_sequences: int, critiques: int) -> Routing:
        """Of a critic whose engines run `max_sequences` at a time, with `critiques` a request."""
        return Routing(
            room=max(1, max_sequences // max(1, critiques)),
            prefix_slack=self.prefix_slack,
            break_after=self.break_after,
            break_pause_s=self.break_pause_s,
            patience_s=self.outage_s if self.on_outage == "outcome_only" else self.outage_limit_s,
            deadline_s=self.deadline_s,
            deadline_floor_s=min(self.deadline_floor_s, self.deadline_s),
        )

    @property
    def retrying(self) -> Retrying:
        return Retrying(attempts=self.attempts, backoff_s=self.backoff_s)

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_tokens=self.max_critique_tokens, temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """One critic: the engines that run it. All give the same critiques."""

    engines: Sequence[CriticEngine]
    max_sequences: int = 256
    """Critiques in flight per engine."""


@dataclass(frozen=True, slots=True)
class _Response:
    """What is judged."""

    messages: Messages
    num_steps: int
    key: str
    prefix: str
    seed: int


class Critics:
    """Judges responses with one critic, or with several that vote beside one another."""

    def __init__(
        self, engines: Sequence[CriticEngine], settings: CriticSettings, *, others: Sequence[Voter] = ()
    ) -> None:
        self._settings = settings
        voters = [Voter(engines=engines, max_sequences=settings.max_sequences), *others]
        each = -(-settings.critiques // len(voters))
        self._lines = [
            Line(voter.engines, settings.routing(voter.max_sequences, each), settings.retrying) for voter in voters
        ]
        self._recent: deque[CritiqueOutcome] = deque(maxlen=settings.failure_window)
        self._last_failure = ""
        self._goes_without = False
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
        response = _Response(asked, len(steps), response_key, f"{question}\n{reference.text}", seed)
        start = monotonic()
        critiques = await self._critiques(response, range(num_critiques))
        self._totals["seconds"] += monotonic() - start
        self._count(critiques)
        self._check_failures()
        return critiques

    async def _critiques(self, response: _Response, numbers: range) -> tuple[Critique, ...]:
        """The critiques with these `numbers`: number i is written by critic i mod m, from its own seed."""
        m = len(self._lines)
        shares = [range(-((v - numbers.start) // m), -((v - numbers.stop) // m)) for v in range(m)]
        answers = await asyncio.gather(*(self._ask(v, response, share) for v, share in enumerate(shares)))
        by_critic = [iter(answer) for answer in answers]
        return tuple(next(by_critic[number % m]) for number in numbers)

    async def _ask(self, voter: int, response: _Response, own: range) -> list[Critique]:
        """The critiques of one critic by its own count: number i has the seed `response.seed + i`, whenever asked."""
        if not own:
            return []
        line, n = self._lines[voter], len(own)
        seed = response.seed + own.start
        answer = await line.ask(
            Request(response.messages, self._settings.sampling, n, seed, response.key, response.prefix)
        )
        self._totals["retries"] += line.retries
        line.retries = 0
        if isinstance(answer, Outage):
            answer = self._bear(answer)
        if isinstance(answer, Failure):
            self._last_failure = answer.cause
            made = [Critique(text="", outcome=answer.outcome, critic=answer.critic)] * n
        else:
            replies, critic = answer
            self._goes_without = False
            self._totals["prompt_tokens"] += replies.prompt_tokens
            self._totals["cached_prompt_tokens"] += replies.cached_tokens
            made = [
                parse(
                    reply.text,
                    response.num_steps,
                    truncated=reply.truncated,
                    critic=critic,
                    num_tokens=reply.num_tokens,
                )
                for reply in replies.completions
            ]
        shown = fingerprint(response.messages)
        return [replace(critique, seed=seed + i, prompt_hash=shown) for i, critique in enumerate(made)]

    def _bear(self, outage: Outage) -> Failure:
        """What becomes of a request that no engine was up for. Raises CriticsFailed where the run only waits."""
        settings = self._settings
        if settings.on_outage == "wait":
            raise CriticsFailed(
                f"every critic has been down for {settings.outage_limit_s:g} s (critic.outage_limit_s). "
                f"Last: {outage.cause}"
            )
        if not self._goes_without:
            self._goes_without = True
            log.error(
                "every critic has been down for %g s; training goes on without critiques: groups that cannot be judged "
                "get outcome rewards alone (critic.on_outage=outcome_only). Last: %s",
                settings.outage_s,
                outage.cause,
            )
        return Failure("not_asked", outage.cause)

    def metrics(self) -> Metrics:
        """Sums since the last call, and the share of critiques that were valid among those that could be."""
        totals, self._totals = self._totals, _no_totals()
        valid = totals["outcome_ok"]
        judged = valid + sum(totals[f"outcome_{outcome}"] for outcome in FAILED_OUTCOMES)
        if judged:
            totals["valid_share"] = valid / judged
        return totals | {"engines_down": float(sum(line.pool.num_down for line in self._lines))}

    def _count(self, critiques: Sequence[Critique]) -> None:
        totals = self._totals
        totals["responses"] += 1
        for critique in critiques:
            totals[f"outcome_{critique.outcome}"] += 1
            totals["critique_tokens"] += critique.num_tokens
            totals["contradictions"] += contradicts_itself(critique)
            totals["dropped_indices"] += critique.num_dropped
            if critique.outcome == "ok" or critique.outcome in FAILED_OUTCOMES:
                self._recent.append(critique.outcome)
            if critique.outcome in FAILED_OUTCOMES and critique.text:
                self._last_failure = f"a reply that ends in {critique.text[-200:]!r}"

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
