"""Which groups of a step are judged where its critics may write only so many tokens.

Whole groups are judged or not: beside judged responses an unjudged one would be paid for escaping the judge. In order:

1. groups with right and wrong answers: the outcome sets the scale of their advantages, critiques say which steps of it
   to blame, and a wrong flag does least harm;
2. groups with wrong answers alone: critiques are all they can learn from, and there are errors to be found;
3. groups with right answers alone: the same, and most flags on them are false, since few of their steps are wrong;
4. groups of which fewer than two answers could be verified: they are dropped anyway.

Within each in prompt order, as long as what they are expected to cost fits. Critics write something of every step of a
response, so it is expected to cost by its steps, at what they have cost over the last steps of the run: those alone
that were surely written down when this one began, so that the choice depends on configuration and seed and not on who
was faster; and what came from a cache costs what it had cost, so that it does not depend on what happens to be kept.
Before any response was judged one costs the most that it can, and never more than that. Leaves out the judging
(service) and waiting for the answers (cluster).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capo_ray.types import Answer, JsonDict

WINDOW = 8
"""Steps of the run over which costs are averaged."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the choice needs of a response."""

    answer: Answer
    num_steps: int


class CriticBudget:
    """Holds what judging has cost; goes into a checkpoint by `state`."""

    def __init__(self, tokens_per_step: int, *, most_per_response: int, max_staleness: int = 0) -> None:
        """`most_per_response`: tokens that the critiques of one response can have at most."""
        self.tokens_per_step = tokens_per_step
        self._most = most_per_response
        self._max_staleness = max_staleness
        self._seen: dict[int, tuple[float, float]] = {}
        """Step of the run -> (its `judging_tokens`, steps of the responses that were judged)."""

    def admit(self, step: int, groups: Sequence[Sequence[Sampled]], *, spent: float = 0.0) -> list[bool]:
        """Which `groups` of `step` are judged. `spent`: `judging_tokens` of the step so far."""
        rate, left = self._rate(step), self.tokens_per_step - spent
        judged = [False] * len(groups)
        for place in sorted(range(len(groups)), key=lambda place: _rank(groups[place])):
            left -= sum(self._cost(response, rate) for response in groups[place])
            if left < 0:
                break
            judged[place] = True
        return judged

    def _cost(self, response: Sampled, rate: float | None) -> float:
        return self._most if rate is None else min(self._most, rate * response.num_steps)

    def _rate(self, step: int) -> float | None:
        """Tokens that judging a step of a response is expected to cost; None: nobody knows yet."""
        over = [seen for known, seen in sorted(self._seen.items()) if known < step - self._max_staleness]
        tokens, steps = (sum(column) for column in zip(*over[-WINDOW:], strict=True)) if over else (0.0, 0.0)
        return tokens / steps if steps else None

    def record(self, step: int, tally: Mapping[str, float]) -> None:
        """Take in what `step` has cost; a response that no critic replied to tells nothing."""
        if steps := tally.get("answered_steps", 0.0):
            self._seen[step] = (tally["judging_tokens"], steps)
        for old in sorted(self._seen)[: -(WINDOW + self._max_staleness)]:
            del self._seen[old]

    def state(self) -> JsonDict:
        return {str(step): list(seen) for step, seen in self._seen.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state` returned."""
        self._seen = {int(step): (float(tokens), float(steps)) for step, (tokens, steps) in state.items()}


def _rank(group: Sequence[Sampled]) -> int:
    known = [response.answer for response in group if response.answer != "unverifiable"]
    if len(known) < 2:
        return 3
    return 0 if len(set(known)) > 1 else 1 + (known[0] == "correct")
