"""From the critiques of one response to one verdict (docs/algorithm.md section 4).

Only critiques whose outcome is "ok" vote; missing ones are never read as "nothing wrong". Whether enough voted is the
group's question (see `credit.group`). `sealed` says when no critique that is still missing could change the verdict, so
that it need not be asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import comb
from typing import Literal, get_args

from capo_ray import extension
from capo_ray.types import FAILED_OUTCOMES, Critique, Verdict

Vote = Literal["intersection", "majority", "strict_majority", "union", "average", "greedy"]

Weight = Callable[[int, int], float]
"""(count, valid), 1 <= count <= valid, to the share of the process penalty that a step pays when `count` of `valid`
critiques flag it. It rises with the count: what no critique flags pays nothing."""

_WEIGHTS: dict[str, Weight] = {
    "intersection": lambda count, valid: float(count == valid),
    "majority": lambda count, valid: float(2 * count >= valid),
    "strict_majority": lambda count, valid: float(2 * count > valid),
    "union": lambda count, valid: float(count >= 1),
    "average": lambda count, valid: count / valid,
    "greedy": lambda count, valid: float(count),
}


def weight_of(how: str) -> Weight:
    """That of a `Vote`, or a user's function by `module:name`. Raises ValueError."""
    if how in _WEIGHTS:
        return _WEIGHTS[how]
    if not extension.is_own(how):
        raise ValueError(f"{how!r} is none of {', '.join(get_args(Vote))}, and no module:name of your own")
    own: Weight = extension.load(how, callable, is_a="a function of (flags, valid critiques) to a weight")
    return own


def check_weight(how: str, most: int) -> None:
    """Raises ValueError where a vote of a user's own leaves 0 to 1, or falls with the flags, at up to `most` critiques;
    the latter would make adaptive voting (`sealed`) wrong."""
    weight = weight_of(how)
    for valid in range(1, most + 1):
        try:
            weights = [0.0, *(float(weight(count, valid)) for count in range(1, valid + 1))]
        except Exception as error:  # whatever a user's function raises
            raise ValueError(f"{how}: it cannot be called with (flags, valid critiques): {error}") from error
        if not all(0 <= value <= 1 for value in weights) or weights != sorted(weights):
            raise ValueError(
                f"{how}: the weights of 0 to {valid} flags of {valid} must rise from 0 to at most 1, got {weights}"
            )


TRIED = 4
"""Critiques that a vote of a user's own is tried out with where no run says how many there are."""


def check_vote(how: str) -> None:
    """Raises ValueError where `how` names no vote, or one of a user's own that is none when it is tried out."""
    check_weight(how, TRIED) if extension.is_own(how) else weight_of(how)


def vote(critiques: Sequence[Critique], num_steps: int, how: str) -> Verdict:
    """`how` is a `Vote` or `module:name`. Raises ValueError for a greedy vote of more than one critique."""
    if how == "greedy" and len(critiques) > 1:
        raise ValueError(f"the greedy vote takes one critique, got {len(critiques)}")
    valid = [critique for critique in critiques if critique.outcome == "ok"]
    flags = Counter(step for critique in valid for step in critique.wrong_steps)
    counts = tuple(flags[step] for step in range(num_steps))
    weight = weight_of(how)
    return Verdict(
        counts=counts,
        weights=tuple(weight(count, len(valid)) if count else 0.0 for count in counts),
        num_valid=len(valid),
        num_invalid=sum(critique.outcome in FAILED_OUTCOMES for critique in critiques),
    )


def sealed(critiques: Sequence[Critique], left: int, num_steps: int, how: str, *, min_valid_critiques: int = 1) -> bool:
    """Whether the verdict is the same whatever `left` more critiques say, and whether or not they are valid.

    The verdict is whether the response is judged at all, and if so the weight of each step.
    """
    so_far = vote(critiques, num_steps, how)
    valid, needed = so_far.num_valid, max(min_valid_critiques, 1)
    if valid < needed:
        return valid + left < needed
    weight = weight_of(how)
    # A weight rises with the flags, so for each number of valid ones to come "none flags" and "all flag" are the ends.
    return all(
        len({weight(count + flags, valid + more) for more in range(left + 1) for flags in (0, more)}) == 1
        for count in set(so_far.counts)
    )


def useful_round(at_least: int, num_critiques: int, how: str, *, min_valid_critiques: int = 1) -> int:
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
