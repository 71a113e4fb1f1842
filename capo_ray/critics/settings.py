"""How critics are asked, whoever they are; `build_critics` makes it of a Config.

Leaves out the critics themselves, what is done with all this (see `service`, `asking`, `routing`) and how many failures
a run bears (see `failures`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from capo_ray.credit.template import PromptTemplate, shipped
from capo_ray.credit.vote import useful_round
from capo_ray.critics.asking import Retrying
from capo_ray.critics.routing import Routing
from capo_ray.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSettings:
    """How critics are asked."""

    critiques: int = 4
    """k: critiques per response."""
    adaptive: bool = False
    """Whether to stop asking when what is left cannot change the verdict."""
    first_round: int = 2
    """Critiques to ask for before that is looked at; more where so few can never decide."""
    full_share: float = 0.05
    """Share of the responses of which all critiques are asked for all the same."""
    vote: str = "intersection"
    min_valid_critiques: int = 1
    """Both as the verdict is made; see credit.group."""
    cache: int = 0
    """Responses whose critiques are kept, for equal ones that come later; 0: none."""
    cache_seed: int = 0
    """With a cache the seed of critiques comes from this and from what is shown, and not from `judge`."""
    template: PromptTemplate = field(default_factory=partial(shipped, "paper"))
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
    """Seconds until it is asked whether it is up again."""
    outage_s: float = 60.0
    """Seconds that requests wait while every engine is left alone, before `on_outage` acts."""
    on_outage: Literal["wait", "outcome_only"] = "wait"
    """Wait on, or give critiques up as `cancelled` for as long as the outage lasts."""
    outage_limit_s: float = 3600.0
    """Seconds that are waited at most; then CriticsFailed."""
    prefix_slack: int = 4
    """Requests by which the engine that has the prefix may be busier than the idlest one."""

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

    def rounds(self, num_critiques: int) -> tuple[int, ...]:
        """How many critiques to ask for at a time: as many as can decide when nothing is found, then as many again as
        there are, and so on."""
        if not self.adaptive:
            return (num_critiques,)
        at_least = min(self.first_round, num_critiques)
        first = useful_round(at_least, num_critiques, self.vote, min_valid_critiques=self.min_valid_critiques)
        sizes = [first]
        while (left := num_critiques - sum(sizes)) > 0:
            sizes.append(min(sum(sizes), left))
        return tuple(sizes)

    @property
    def retrying(self) -> Retrying:
        return Retrying(attempts=self.attempts, backoff_s=self.backoff_s)

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_tokens=self.max_critique_tokens, temperature=self.temperature, top_p=self.top_p)
