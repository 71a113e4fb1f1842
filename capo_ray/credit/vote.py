"""From the critiques of one response to one verdict (CAPO.md section 4).

Only critiques whose outcome is "ok" vote; missing ones are never read as "nothing wrong". Whether enough voted is the
group's question (see `credit.group`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from capo_ray.types import FAILED_OUTCOMES, Critique, Verdict

Vote = Literal["intersection", "majority", "strict_majority", "union", "average", "greedy"]

# Share of the process penalty that a step pays when `count` of `valid` >= 1 critiques flag it.
_WEIGHTS: dict[Vote, Callable[[int, int], float]] = {
    "intersection": lambda count, valid: float(count == valid),
    "majority": lambda count, valid: float(2 * count >= valid),
    "strict_majority": lambda count, valid: float(2 * count > valid),
    "union": lambda count, valid: float(count >= 1),
    "average": lambda count, valid: count / valid,
    "greedy": lambda count, valid: float(count),
}


def vote(critiques: Sequence[Critique], num_steps: int, how: Vote) -> Verdict:
    """Raises ValueError for a greedy vote of more than one critique."""
    if how == "greedy" and len(critiques) > 1:
        raise ValueError(f"the greedy vote takes one critique, got {len(critiques)}")
    valid = [critique for critique in critiques if critique.outcome == "ok"]
    flags = Counter(step for critique in valid for step in critique.wrong_steps)
    counts = tuple(flags[step] for step in range(num_steps))
    return Verdict(
        counts=counts,
        weights=tuple(_WEIGHTS[how](count, len(valid)) if count else 0.0 for count in counts),
        num_valid=len(valid),
        num_invalid=sum(critique.outcome in FAILED_OUTCOMES for critique in critiques),
    )
