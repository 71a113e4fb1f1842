"""From the critiques of one response to one verdict (CAPO.md section 4).

Only critiques whose outcome is "ok" vote; missing ones are never read as "nothing wrong". Whether enough voted is the
group's question (see `credit.group`). `sealed` says when no critique that is still missing could change the verdict, so
that it need not be asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import comb
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


def sealed(
    critiques: Sequence[Critique], left: int, num_steps: int, how: Vote, *, min_valid_critiques: int = 1
) -> bool:
    """Whether the verdict is the same whatever `left` more critiques say, and whether or not they are valid.

    The verdict is whether the response is judged at all, and if so the weight of each step.
    """
    so_far = vote(critiques, num_steps, how)
    valid, needed = so_far.num_valid, max(min_valid_critiques, 1)
    if valid < needed:
        return valid + left < needed
    weight = _WEIGHTS[how]
    # A weight rises with the flags, so for each number of valid ones to come "none flags" and "all flag" are the ends.
    return all(
        len({weight(count + flags, valid + more) for more in range(left + 1) for flags in (0, more)}) == 1
        for count in set(so_far.counts)
    )


def useful_round(at_least: int, num_critiques: int, how: Vote, *, min_valid_critiques: int = 1) -> int:
    """How many of `num_critiques` to ask for first: the fewest that seal the verdict when all of them flag nothing."""
    clean = Critique(text="", outcome="ok")
    return next(
        (
            asked
            for asked in range(at_least, num_critiques)
            if sealed([clean] * asked, num_critiques - asked, 1, how, min_valid_critiques=min_valid_critiques)
        ),
        num_critiques,
    )


def agreement(verdict: Verdict) -> tuple[int, int]:
    """Pairs of valid critiques that say the same of a step, and all such pairs, summed over the steps."""
    same = sum(comb(count, 2) + comb(verdict.num_valid - count, 2) for count in verdict.counts)
    return same, comb(verdict.num_valid, 2) * len(verdict.counts)
