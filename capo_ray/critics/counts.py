"""What the judging service counts of critiques as they come, and an example of those that failed.

Leaves out how many failures a run bears (failures), and rates (records.tally).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from capo_ray.credit.reply import contradicts_itself
from capo_ray.credit.vote import agreement, vote
from capo_ray.types import FAILED_OUTCOMES, Critique, CritiqueOutcome, Metrics

_NAMES = (
    *("responses", "retries", "seconds", "critique_tokens", "prompt_tokens", "cached_prompt_tokens"),
    *("agreeing_pairs", "compared_pairs", "judged_in_full", "first_differs"),
    *("references_shortened", "contradictions", "dropped_indices"),
    *(f"outcome_{outcome}" for outcome in get_args(CritiqueOutcome)),
)


class CriticCounts:
    def __init__(self) -> None:
        self.totals: Metrics = dict.fromkeys(_NAMES, 0.0)
        """Sums since the start."""
        self._taken = dict(self.totals)
        self._failure: tuple[str, str] | None = None

    def add(self, **counts: float) -> None:
        for name, value in counts.items():
            self.totals[name] += value

    def failed(self, response_key: str, cause: str) -> None:
        """Keep the failure of the response whose name comes first: the same one whatever arrives when."""
        self._failure = min(self._failure or (response_key, cause), (response_key, cause))

    @property
    def example(self) -> str:
        """Why a critique failed since the last `take`."""
        return self._failure[1] if self._failure else ""

    def count(self, critiques: Sequence[Critique], response_key: str, *, seconds: float) -> None:
        """One response, which took `seconds`."""
        self.add(responses=1, seconds=seconds)
        for critique in critiques:
            self.add(
                critique_tokens=critique.num_tokens,
                contradictions=contradicts_itself(critique),
                dropped_indices=critique.num_dropped,
                **{f"outcome_{critique.outcome}": 1},
            )
            if critique.outcome in FAILED_OUTCOMES and critique.text:
                self.failed(response_key, f"a reply that ends in {critique.text[-200:]!r}")

    def compare(self, critiques: Sequence[Critique], num_steps: int, how: str) -> None:
        """How far critiques agree, and whether the first alone would have said the same as all of them."""
        whole, first = (vote(some, num_steps, how) for some in (critiques, critiques[:1]))
        if whole.num_valid:
            same, pairs = agreement(whole)
            differs = not first.num_valid or first.weights != whole.weights
            self.add(agreeing_pairs=same, compared_pairs=pairs, judged_in_full=1, first_differs=differs)

    def take(self) -> Metrics:
        """Sums since the last call, and the share of critiques that were valid among those that could be."""
        totals = {name: value - self._taken[name] for name, value in self.totals.items()}
        self._taken = dict(self.totals)
        self._failure = None
        valid = totals["outcome_ok"]
        judged = valid + sum(totals[f"outcome_{outcome}"] for outcome in FAILED_OUTCOMES)
        return totals | ({"valid_share": valid / judged} if judged else {})
