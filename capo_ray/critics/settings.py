"""How critics are asked, whoever they are.

Leaves out the critics themselves, what is done with all this (see `service`, `asking`, `routing`), how many failures a
run bears (see `failures`) and what is set where nothing is given (config).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capo_ray.credit.template import PromptTemplate
from capo_ray.credit.vote import useful_round
from capo_ray.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSettings:
    """How critics are asked. What has no word here is of `critic` or `reward` in docs/configuration.md."""

    critiques: int
    adaptive: bool
    first_round: int
    full_share: float
    vote: str
    min_valid_critiques: int
    cache: int
    cache_seed: int
    """With a cache the seed of critiques comes from this and from what is shown, and not from `judge`."""
    template: PromptTemplate
    max_critique_tokens: int
    temperature: float
    top_p: float
    max_sequences: int
    deadline_s: float
    deadline_floor_s: float
    attempts: int
    backoff_s: float = 0.5
    """Seconds before the second try; twice as many before each further one."""
    break_after: int = 3
    """Failures in a row after which an engine is left alone."""
    break_pause_s: float = 30.0
    """Seconds until it is asked whether it is up again; also where it is busy and does not say for how long."""
    outage_s: float
    on_outage: Literal["wait", "outcome_only"]
    outage_limit_s: float
    prefix_slack: int = 4
    """Requests by which the engine that has the prefix may be busier than the idlest one."""

    @property
    def patience_s(self) -> float:
        """Seconds that requests queue while every engine is left alone; then they are sent away until one is up."""
        return self.outage_s if self.on_outage == "outcome_only" else self.outage_limit_s

    @property
    def ping_s(self) -> float:
        """Seconds for an answer of an engine that is asked whether it is up again."""
        return min(self.deadline_floor_s, self.deadline_s)

    def rounds(self, num_critiques: int) -> tuple[int, ...]:
        """How many critiques to ask for at a time."""
        if not self.adaptive:
            return (num_critiques,)
        return adaptive_rounds(
            num_critiques, self.vote, first=self.first_round, min_valid_critiques=self.min_valid_critiques
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_tokens=self.max_critique_tokens, temperature=self.temperature, top_p=self.top_p)


def adaptive_rounds(num_critiques: int, vote: str, *, first: int, min_valid_critiques: int = 1) -> tuple[int, ...]:
    """As many as can decide when nothing is found, `first` or more, then as many again as there are, and so on."""
    at_least = min(first, num_critiques)
    sizes = [useful_round(at_least, num_critiques, vote, min_valid_critiques=min_valid_critiques)]
    while (left := num_critiques - sum(sizes)) > 0:
        sizes.append(min(sum(sizes), left))
    return tuple(sizes)
