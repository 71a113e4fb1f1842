"""What a critic is worth on steps with known labels: pure functions over critiques, no engine and no file.

One set of K critiques per response serves every vote and every k <= K: the vote of the first k. Leaves out where labels
and critiques come from (items, replies) and how scores are shown (report).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from capo_ray.credit.flags import FlagCounts, Labels, flags
from capo_ray.credit.vote import Vote, agreement, sealed, vote
from capo_ray.critics.settings import adaptive_rounds
from capo_ray.types import FAILED_OUTCOMES, Critique, Metrics

VOTES: tuple[Vote, ...] = ("intersection", "majority", "strict_majority", "union", "average")
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Judged:
    """One response with the truth and all its critiques."""

    labels: Labels
    critiques: Sequence[Critique]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One vote of the first k critiques, over all responses. None: nothing to take the share of."""

    vote: Vote
    k: int
    f1: float | None
    """ProcessBench's own: harmonic mean of the next two."""
    found_first_error: float | None
    """Share of responses with an error whose first flagged step is the first wrong one."""
    passed_correct: float | None
    """Share of responses without an error in which nothing is flagged."""
    precision: float | None
    """Share of flagged steps that are wrong, among steps whose label is known."""
    recall: float | None
    """Share of wrong steps that are flagged."""
    unjudged: float
    """Share of responses without a valid critique: missed by `f1`, left out of `precision` and `recall`."""
    adaptive_from_1: float | None
    adaptive_from_2: float | None
    """Share of the tokens of these k critiques that adaptive voting would have spent, by its first round."""


def score(judged: Sequence[Judged], how: Vote, k: int) -> Score:
    """Raises ValueError where there is nothing to score."""
    if not judged:
        raise ValueError("no response to score")
    flagged = [flags(response.critiques[:k], len(response.labels), how) for response in judged]
    firsts = [
        (_first(_known(r.labels)), None if f is None else _first(f)) for r, f in zip(judged, flagged, strict=True)
    ]
    found = _share(truth == said for truth, said in firsts if truth != NONE)
    passed = _share(truth == said for truth, said in firsts if truth == NONE)
    steps = FlagCounts.of((row, response.labels) for response, row in zip(judged, flagged, strict=True))
    return Score(
        vote=how,
        k=k,
        f1=_harmonic(found, passed),
        found_first_error=found,
        passed_correct=passed,
        precision=_ratio(steps.hits, steps.flagged),
        recall=_ratio(steps.hits, steps.wrong),
        unjudged=sum(row is None for row in flagged) / len(judged),
        adaptive_from_1=adaptive_share(judged, how, k, 1),
        adaptive_from_2=adaptive_share(judged, how, k, 2),
    )


NONE = -1
"""The first wrong step of a response that has none, as ProcessBench writes it."""


def _known(labels: Labels) -> tuple[bool, ...]:
    return tuple(bool(label) for label in labels)


def _first(row: Sequence[bool]) -> int:
    return next((step for step, flag in enumerate(row) if flag), NONE)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _share(cases: Iterable[bool]) -> float | None:
    given = list(cases)
    return _ratio(sum(given), len(given))


def _harmonic(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0


def adaptive_share(judged: Sequence[Judged], how: Vote, k: int, first_round: int) -> float | None:
    """Tokens of the critiques that voting in rounds asks for (critics.settings), over those of all k."""
    ends = list(accumulate(adaptive_rounds(k, how, first=first_round)))
    spent = whole = 0
    for response in judged:
        asked = response.critiques[:k]
        end = next(end for end in ends if end == k or sealed(asked[:end], k - end, len(response.labels), how))
        spent += _tokens(asked[:end])
        whole += _tokens(asked)
    return _ratio(spent, whole)


def _tokens(critiques: Iterable[Critique]) -> int:
    return sum(critique.num_tokens for critique in critiques)


def summary(judged: Sequence[Judged], seconds: float) -> Metrics:
    """What is independent of the vote, over all critiques of the set; `seconds` were spent on asking for them."""
    critiques = [critique for response in judged for critique in response.critiques]
    outcomes = Counter(critique.outcome for critique in critiques)
    failed = sum(outcomes[outcome] for outcome in FAILED_OUTCOMES)
    same, pairs = 0, 0
    for response in judged:
        agreed = agreement(vote(response.critiques, len(response.labels), "union"))
        same, pairs = same + agreed[0], pairs + agreed[1]
    labels = [label for response in judged for label in response.labels if label is not None]
    made: dict[str, float | None] = {
        "responses": float(len(judged)),
        "responses_with_error": float(sum(_first(_known(response.labels)) != NONE for response in judged)),
        "wrong_step_share": _share(labels),
        "invalid_share": _ratio(failed, failed + outcomes["ok"]),
        "agreement": _ratio(same, pairs),
        "tokens_per_response": _tokens(critiques) / len(judged),
        "responses_per_s": _ratio(len(judged), seconds),
        **{f"outcome_{outcome}": float(count) for outcome, count in sorted(outcomes.items())},
    }
    return {name: value for name, value in made.items() if value is not None}


def advise(scores: Sequence[Score], wrong_step_share: float) -> str:
    """The vote to take and why: the best F1, the fewest critiques within a point of it, then the higher precision."""
    rated = [one for one in scores if one.f1 is not None]
    best = max(rated, key=lambda one: one.f1 or 0.0, default=None)
    if best is None or not best.f1:
        return (
            "none: no vote finds any first error and passes any correct response; this critic cannot be used as it is"
        )
    near = [one for one in rated if (one.f1 or 0.0) >= best.f1 - 0.01]
    fewest = min(one.k for one in near)
    chosen = max((one for one in near if one.k == fewest), key=lambda one: (one.precision or 0.0, one.f1))
    what = f"reward.vote={chosen.vote} with critic.critiques={chosen.k}: F1 {chosen.f1:.4f}"
    reason = "the highest" if chosen is best else f"within 0.01 of the highest ({best.f1:.4f}, {best.vote} of {best.k})"
    if (chosen.precision or 0.0) <= wrong_step_share:
        return (
            f"none: even with {what} only {chosen.precision or 0.0:.4f} of the flagged steps are wrong, and "
            f"{wrong_step_share:.4f} of all steps are: flags at random would do as well"
        )
    cheapest = ", at the fewest critiques" if chosen is not best else ""
    return f"{what}, {reason}{cheapest}; precision {chosen.precision:.4f}, recall {chosen.recall or 0.0:.4f}"
