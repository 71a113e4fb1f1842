"""The responses of one prompt, from critiques and answers to advantages: the one path that training and the command
line tool both take.

A response whose answer cannot be verified is dropped from its group. One with too few valid critiques is *unjudged*:
beside judged ones it would be paid for escaping the judge, so it is dropped too, or the whole group gets outcome
rewards alone. The latter whatever is set where no critic was there to be asked: nobody escaped then. Dropped is not
zero: what is dropped takes no part in mean and std and is trained on by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from capo_ray.credit.advantage import Algorithm, algorithm_of
from capo_ray.credit.penalty import ErrorSet, Returns, penalties
from capo_ray.credit.reward import ANSWER_ONLY, Outcome, outcome_reward, token_rewards
from capo_ray.credit.vote import vote
from capo_ray.types import UNASKED_OUTCOMES, Answer, Critique, Rollout, Scored, Step, Verdict

Unjudged = Literal["drop", "outcome_only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The choices of docs/algorithm.md sections 3 to 6, the paper's where nothing is said. What has no word here is of
    `reward` or `algorithm` in docs/configuration.md."""

    vote: str = "intersection"
    outcome_weight: float = 2.0
    process_weight: float = 1.0
    error_set: ErrorSet = "all"
    returns: Returns = "none"
    outcome: Outcome = ANSWER_ONLY
    advantage: str = "capo"
    min_valid_critiques: int = 1
    unjudged: Unjudged = "drop"
    mask_cut_off: bool = False

    @property
    def needs_judge(self) -> bool:
        """Whether a response that no critic has judged is lacking something."""
        return algorithm_of(self.advantage).step_penalties or self.outcome.source == "critic"


CAPO = Scheme()
"""The paper's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One response, all there is to know of it before it is scored."""

    rollout: Rollout
    steps: tuple[Step, ...]
    critiques: tuple[Critique, ...]
    answer: Answer
    extracted: str | None = None
    """What the verifier took for its final answer."""
    reason: str | None = None
    """Why it is not correct, as the verifier says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """All members in their order, and the advantages of those that are trained on."""

    members: tuple[Scored, ...]
    advantages: tuple[tuple[float, ...] | None, ...]  # [member][T]
    """None: not trained on."""
    num_compared: int
    """How many took part in mean and std; with fewer than two there is nothing to be learnt. More than are trained on
    where cut-off ones are masked."""
    num_unverifiable: int
    num_unjudged: int
    """Among the verifiable; 0 where the algorithm asks for no judge."""

    @property
    def has_credit(self) -> bool:
        """Whether any token has an advantage; without one the group teaches nothing."""
        return self.num_compared >= 2 and any(any(row) for row in self.advantages if row is not None)


def score_group(members: Sequence[Member], scheme: Scheme) -> GroupScore:
    """Vote, reward and normalise one prompt's responses."""
    algorithm = algorithm_of(scheme.advantage)
    verdicts = [_verdict(member, scheme) for member in members]
    outcomes = [_outcome(member, scheme) for member in members]
    by_verifier = scheme.outcome.source == "verifier"
    verifiable = [m for m, member in enumerate(members) if not by_verifier or member.answer != "unverifiable"]
    unjudged = [m for m in verifiable if outcomes[m] is None or (scheme.needs_judge and verdicts[m] is None)]
    without = scheme.unjudged == "outcome_only" or any(_nobody_was_asked(members[m]) for m in unjudged)
    kept = [m for m in verifiable if outcomes[m] is not None and (without or m not in unjudged)]

    pays = algorithm.step_penalties and not (unjudged and without)
    scored = tuple(_score(*row, scheme, pays) for row in zip(members, verdicts, outcomes, strict=True))

    advantages: list[tuple[float, ...] | None] = [None] * len(members)
    if kept:
        rows = _normalised(algorithm, [scored[m] for m in kept], [outcomes[m] or 0.0 for m in kept], scheme.advantage)
        for m, row in zip(kept, rows, strict=True):
            masked = scheme.mask_cut_off and members[m].rollout.finish == "length"
            advantages[m] = None if masked else row
    return GroupScore(
        members=scored,
        advantages=tuple(advantages),
        num_compared=len(kept),
        num_unverifiable=sum(member.answer == "unverifiable" for member in members),
        num_unjudged=len(unjudged),
    )


def _normalised(
    algorithm: Algorithm, members: Sequence[Scored], outcomes: Sequence[float], name: str
) -> Sequence[tuple[float, ...]]:
    """Advantages of the `members` that are compared. Raises ValueError, with the response, where one is not finite."""
    try:
        rows = algorithm.normalise([member.token_rewards for member in members], outcomes)
    except OverflowError as error:
        raise ValueError(f"algorithm.advantage {name}: rewards are too large to be compared ({error})") from error
    for member, row in zip(members, rows, strict=True):
        if not all(map(isfinite, row)):
            raise ValueError(
                f"rollout {member.rollout.prompt_id!r}/{member.rollout.index}: algorithm.advantage {name} makes an "
                "advantage that is not finite of finite rewards"
            )
    return rows


def _nobody_was_asked(member: Member) -> bool:
    """No critic was there to be asked: no escape from the judge, so its group keeps it and does without critiques."""
    return bool(member.critiques) and all(critique.outcome in UNASKED_OUTCOMES for critique in member.critiques)


def _verdict(member: Member, scheme: Scheme) -> Verdict | None:
    verdict = vote(member.critiques, len(member.steps), scheme.vote)
    return verdict if verdict.num_valid >= max(scheme.min_valid_critiques, 1) else None


def _outcome(member: Member, scheme: Scheme) -> float | None:
    return outcome_reward(
        member.rollout, member.answer, member.critiques, weight=scheme.outcome_weight, outcome=scheme.outcome
    )


def _score(member: Member, verdict: Verdict | None, outcome: float | None, scheme: Scheme, pays: bool) -> Scored:
    """An unjudged response has its outcome reward, so that the gap to judged ones can be told."""
    weights = penalties(verdict.weights, scheme.error_set, scheme.returns) if verdict and pays else ()
    return Scored(
        rollout=member.rollout,
        steps=member.steps,
        critiques=member.critiques,
        verdict=verdict,
        answer=member.answer,
        token_rewards=token_rewards(
            len(member.rollout.token_ids),
            member.steps if weights else (),
            weights,
            outcome_reward=outcome or 0.0,
            process_weight=scheme.process_weight,
        ),
    )
