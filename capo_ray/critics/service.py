"""The judging service without Ray: what critics are asked, for how long, and what becomes of a failure.

It sees critics as the protocol CriticEngine, so that races and failures are tested on fakes. The k critiques of a
response are one request to one engine, or one per critic where several vote; the responses of one problem prefer the
engine that has their common prefix in its cache. Under adaptive voting they are asked for in rounds, and those that can
change nothing are left out; a critique is the same in whatever round. A failed critique is a typed outcome,
never an exception and never a zero.

Leaves out: how many of them a run bears (see `failures`), what is counted (see `counts`) and kept for later (see
`cache`), sending and retrying (see
`asking`), which engine a request goes to (see `routing`), starting engines (see `cluster`), voting (see `credit`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic

from capo_ray.credit.critique import Messages, Reference, fingerprint
from capo_ray.credit.reply import parse
from capo_ray.credit.vote import sealed
from capo_ray.critics.asking import Answer, Failure, Line, Outage, Request
from capo_ray.critics.cache import CritiqueCache
from capo_ray.critics.counts import CriticCounts
from capo_ray.critics.settings import CriticSettings
from capo_ray.engines.protocols import CriticEngine
from capo_ray.seeds import seed_of
from capo_ray.types import REPLIED_OUTCOMES, UNASKED_OUTCOMES, Critique, Metrics

log = logging.getLogger(__name__)


_NO_CRITIQUES = "training goes on without critiques: groups that cannot be judged get outcome rewards alone"


class CriticsFailed(RuntimeError):
    """More critiques failed than the run allows; the message has the counts and the last cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """One critic: the engines that run it. All give the same critiques."""

    engines: Sequence[CriticEngine]
    max_sequences: int = 256
    """Critiques in flight per engine."""


@dataclass(frozen=True, slots=True)
class _Conversation:
    """What a critic is shown of a response."""

    messages: Messages
    hash: str
    prefix: str


@dataclass(slots=True)
class _Response:
    """What is judged."""

    whole: _Conversation
    shorten: Callable[[], _Conversation] | None
    """For critics whose window the whole one does not fit, which is seldom: it is made when one is met."""
    num_steps: int
    key: str
    seed: int
    shorter: _Conversation | None = None
    homes: dict[int, str] = field(default_factory=dict)
    """Critic -> the engine that has the whole conversation in its cache."""
    shortened: set[int] = field(default_factory=set)
    """Critics that are shown the shorter one."""

    def shown(self, voter: int) -> _Conversation:
        return self.shorter if self.shorter is not None and voter in self.shortened else self.whole

    def shows_less(self, voter: int) -> bool:
        """Whether the critic can be shown a shorter one from now on."""
        if self.shorten is None or voter in self.shortened:
            return False
        self.shorter = self.shorter or self.shorten()
        self.shortened.add(voter)
        return True


class Critics:
    """Judges responses with one critic, or with several that vote beside one another."""

    def __init__(
        self, engines: Sequence[CriticEngine], settings: CriticSettings, *, others: Sequence[Voter] = ()
    ) -> None:
        self._settings = settings
        voters = [Voter(engines=engines, max_sequences=settings.max_sequences), *others]
        each = -(-max(settings.rounds(settings.critiques)) // len(voters))
        self._lines = [
            Line(voter.engines, settings, room=max(1, voter.max_sequences // max(1, each))) for voter in voters
        ]
        self._cache = CritiqueCache(settings.cache)
        self._counts = CriticCounts()
        self._without: set[int] = set()
        """Critics that the run goes without until they answer."""

    async def judge(
        self,
        question: str,
        reference: Reference,
        steps: Sequence[str],
        *,
        response_key: str,
        seed: int,
        k: int | None = None,
        shorter: Reference | None = None,
    ) -> tuple[Critique, ...]:
        """`k` critiques (the settings' number by default) of the response whose steps show as `steps`.

        Always so many, in the critic's order, whatever happens to them; `response_key` names the response in the log.
        A critic whose window the prompt does not fit is shown the `shorter` reference instead of `reference`; where it
        still does not fit, or there is none, its critiques are `refused`: no step is ever cut. Raises CriticsFailed
        when an outage lasts longer than the settings bear.
        """
        num_critiques = self._settings.critiques if k is None else k
        start = monotonic()
        whole = self._conversation(question, reference, steps)
        shorten = None if shorter is None else partial(self._conversation, question, shorter, steps)
        if self._settings.cache:
            seed = seed_of(self._settings.cache_seed, whole.hash, "critique")
        response = _Response(whole, shorten, len(steps), response_key, seed)
        critiques = await self._judged(response, (whole.hash, shorter, num_critiques), num_critiques)
        self._counts.add(references_shortened=any(critique.prompt_hash != whole.hash for critique in critiques))
        self._counts.count(critiques, response_key, seconds=monotonic() - start)
        return critiques

    def _conversation(self, question: str, reference: Reference, steps: Sequence[str]) -> _Conversation:
        messages = self._settings.template.messages(question, reference, steps)
        return _Conversation(messages, fingerprint(messages), f"{question}\n{reference.text}")

    async def _judged(self, response: _Response, key: Hashable, num_critiques: int) -> tuple[Critique, ...]:
        """What critics say of one response, or what the cache has under `key`."""
        in_full = self._in_full(response)
        async with self._cache.turn(key):
            critiques = self._cache.find(key)
            if critiques is None:
                rounds = (num_critiques,) if in_full else self._settings.rounds(num_critiques)
                critiques = await self._in_rounds(response, rounds)
                if self._lasts(response, critiques):
                    self._cache.keep(key, critiques)
                if in_full:
                    self._counts.compare(critiques, response.num_steps, self._settings.vote)
        return critiques

    def _lasts(self, response: _Response, critiques: tuple[Critique, ...]) -> bool:
        """Whether more asking could not change the verdict; what failed may be there next time."""
        asked = [critique for critique in critiques if critique.outcome != "not_asked"]
        replied = all(critique.outcome in REPLIED_OUTCOMES for critique in asked)
        return replied and self._sealed(response, asked, len(critiques) - len(asked))

    def _sealed(self, response: _Response, critiques: Sequence[Critique], left: int) -> bool:
        settings = self._settings
        needed = settings.min_valid_critiques
        return not left or sealed(critiques, left, response.num_steps, settings.vote, min_valid_critiques=needed)

    def _in_full(self, response: _Response) -> bool:
        """Whether all critiques are asked for whatever they say: always unless `adaptive`, and then for a share.

        When asking ends depends on what was said, so how far critics agree can be measured on these alone.
        """
        settings = self._settings
        drawn = seed_of(response.seed, "in full") / 2**62
        return not settings.adaptive or drawn < settings.full_share

    async def _in_rounds(self, response: _Response, rounds: Sequence[int]) -> tuple[Critique, ...]:
        """Ask until the verdict is sealed, or no critic replied when it was last asked; what is left is `not_asked`."""
        left = sum(rounds)
        critiques: tuple[Critique, ...] = ()
        replied: dict[int, bool] = {}
        for size in rounds:
            numbers = range(len(critiques), len(critiques) + size)
            made = await self._critiques(response, numbers)
            critiques, left = critiques + made, left - size
            for number, critique in zip(numbers, made, strict=True):
                replied[number % len(self._lines)] = critique.outcome in REPLIED_OUTCOMES
            nobody = len(replied) == len(self._lines) and not any(replied.values())
            if nobody or self._sealed(response, critiques, left):
                break
        unasked = Critique(text="", outcome="not_asked", prompt_hash=response.whole.hash)
        return critiques + (unasked,) * left

    async def _critiques(self, response: _Response, numbers: range) -> tuple[Critique, ...]:
        """The critiques with these `numbers`: number i is written by critic i mod m, from its own seed."""
        m = len(self._lines)
        shares = [range(-((v - numbers.start) // m), -((v - numbers.stop) // m)) for v in range(m)]
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self._ask(v, response, share)) for v, share in enumerate(shares)]
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # the others were cancelled
        by_critic = [iter(task.result()) for task in asked]
        return tuple(next(by_critic[number % m]) for number in numbers)

    async def _ask(self, voter: int, response: _Response, own: range) -> list[Critique]:
        """The critiques of one critic by its own count: number i has the critic's seed plus i, whenever asked."""
        if not own:
            return []
        n = len(own)
        first = seed_of(response.seed, "critic", voter) if voter else response.seed  # two may run the same model
        seed = first + own.start
        answer = await self._answer(voter, response, n, seed)
        if isinstance(answer, Failure) and answer.outcome == "refused" and response.shows_less(voter):
            answer = await self._answer(voter, response, n, seed)
        if isinstance(answer, Outage):
            answer = self._bear(voter, answer)
        if isinstance(answer, Failure):
            self._counts.failed(response.key, answer.cause)
            made = [Critique(text="", outcome=answer.outcome, critic=answer.critic)] * n
        else:
            replies, critic = answer
            response.homes[voter] = critic
            self._without.discard(voter)
            self._counts.add(prompt_tokens=replies.prompt_tokens, cached_prompt_tokens=replies.cached_tokens)
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
        return [
            replace(
                critique,
                seed=None if critique.outcome in UNASKED_OUTCOMES else seed + i,
                prompt_hash=response.shown(voter).hash,
            )
            for i, critique in enumerate(made)
        ]

    async def _answer(self, voter: int, response: _Response, n: int, seed: int) -> Answer | Failure | Outage:
        shown = response.shown(voter)
        request = Request(
            shown.messages,
            self._settings.sampling,
            n,
            seed,
            response.key,
            shown.prefix,
            prefers=response.homes.get(voter, ""),
            tried_again=lambda: self._counts.add(retries=1),
        )
        return await self._lines[voter].ask(request)

    def _bear(self, voter: int, outage: Outage) -> Failure:
        """What becomes of a request that no engine of a critic was up for. Raises CriticsFailed under `wait`."""
        settings, many = self._settings, len(self._lines) > 1
        names = ", ".join(member.engine.name for member in self._lines[voter].pool.members)
        who = f"critic {voter + 1} of {len(self._lines)} ({names})" if many else "every critic"
        if settings.on_outage == "wait":
            raise CriticsFailed(
                f"{who} has been down for {settings.outage_limit_s:g} s (critic.outage_limit_s)"
                f"{', and critic.on_outage=wait waits for each critic' if many else ''}. Last: {outage.cause}"
            )
        if voter not in self._without:
            self._without.add(voter)
            if len(self._without) == len(self._lines):
                who, follows = "every critic", _NO_CRITIQUES
            else:
                follows = "its share of the votes is missing while others are up"
            log.error(
                "%s has been down for %g s; %s (critic.on_outage=outcome_only). Last: %s",
                who, settings.outage_s, follows, outage.cause,
            )  # fmt: skip
        return Failure("cancelled", outage.cause)

    def not_asked(self) -> tuple[Critique, ...]:
        """What stands for the critiques of a response that no critic is asked about."""
        return (Critique(text="", outcome="not_asked"),) * self._settings.critiques

    def apart(self) -> Critics:
        """The same engines and queues for what is no response of the run: counted by itself and never from a cache."""
        made = copy(self)
        made._settings = replace(self._settings, cache=0)
        made._cache = CritiqueCache(0)
        made._counts = CriticCounts()
        return made

    def example(self) -> str:
        """Why one of the critiques failed since `metrics` was last called; empty where none did."""
        return self._counts.example

    def metrics(self) -> Metrics:
        """Sums since the last call, and the share of critiques that were valid among those that could be."""
        return self._counts.take() | {"engines_down": self._engines_down()}

    def totals(self) -> Metrics:
        """Responses, tries and outcomes since the start, how many requests wait, and how many critics are left alone.

        Tokens are in the totals of the engines.
        """
        waiting = sum(line.pool.num_waiting for line in self._lines)
        counted = {
            name: value
            for name, value in self._counts.totals.items()
            if name in ("responses", "retries") or name.startswith("outcome_")
        }
        return counted | {"critic_queue": float(waiting), "engines_down": self._engines_down()}

    def _engines_down(self) -> float:
        return float(sum(line.pool.num_down for line in self._lines))

    def engines(self) -> dict[str, Metrics]:
        """Totals of the critics that count here what they do, by name."""
        engines = (member.engine for line in self._lines for member in line.pool.members)
        return {engine.name: totals for engine in engines if (totals := engine.metrics())}
