"""What the flags of a vote are worth against known labels of the steps.

Where only the first error is labelled, the steps after it are nobody's: they count in neither precision nor recall.
Leaves out where labels come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capo_ray.credit.vote import vote
from capo_ray.types import Critique

FLAG = 0.5
"""Weight from which on a step counts as flagged: `average` alone has weights between 0 and 1."""

Labels = Sequence[bool | None]
"""Per step: wrong, right, or None where nobody knows."""


def flags(
    critiques: Sequence[Critique], num_steps: int, how: str, *, min_valid_critiques: int = 1
) -> tuple[bool, ...] | None:
    """Per step, whether the vote calls it wrong; None with fewer valid critiques."""
    verdict = vote(critiques, num_steps, how)
    return tuple(weight >= FLAG for weight in verdict.weights) if verdict.num_valid >= min_valid_critiques else None


@dataclass(frozen=True, slots=True)
class FlagCounts:
    """Steps with a known label, counted: precision is `hits` / `flagged`, recall `hits` / `wrong`."""

    hits: int
    """Flagged and wrong."""
    flagged: int
    wrong: int

    @staticmethod
    def of(responses: Iterable[tuple[Sequence[bool] | None, Labels]]) -> FlagCounts:
        """Of (flags, labels) of every response; those without flags are left out."""
        known = [
            (flag, label)
            for row, labels in responses
            if row is not None
            for flag, label in zip(row, labels, strict=True)
            if label is not None
        ]
        return FlagCounts(
            hits=sum(flag and label for flag, label in known),
            flagged=sum(flag for flag, _ in known),
            wrong=sum(label for _, label in known),
        )
