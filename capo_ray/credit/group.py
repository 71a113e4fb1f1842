"""The responses of one prompt, from critiques and answers to advantages: the one path that training and the command
line tool both take.

A response whose answer cannot be verified is dropped from its group. One with too few valid critiques is *unjudged*:
beside judged ones it would be paid for escaping the judge, so it is dropped too, or the whole group gets outcome
rewards alone. Dropped is not zero: what is dropped takes no part in mean and std and is trained on by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capo_ray.credit.advantage import ALGORITHMS, Advantage
from capo_ray.credit.reward import token_rewards
from capo_ray.credit.vote import Vote, vote
from capo_ray.types import Answer, Critique, Rollout, Scored, Step, Verdict

Unjudged = Literal["drop", "outcome_only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The choices of CAPO.md sections 3 to 6."""

    vote: Vote = "intersection"
    outcome_weight: float = 2.0
    """C"""
    process_weight: float = 1.0
    """P"""
    advantage: Advantage = "capo"
    min_valid_critiques: int = 1
    """A response with fewer is unjudged."""
    unjudged: Unjudged = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One response, all there is to know of it before it is scored."""

    rollout: Rollout
    steps: tuple[Step, ...]
    critiques: tuple[Critique, ...]
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """All members in their order, and the advantages of those that are kept."""

    members: tuple[Scored, ...]
    advantages: tuple[tuple[float, ...] | None, ...]  # [member][T]
    """None: dropped."""
    num_unverifiable: int
    num_unjudged: int
    """Among the verifiable; 0 where the algorithm asks for no judge."""

    @property
    def has_credit(self) -> bool:
        """Whether any token has an advantage; without one the group teaches nothing."""
        return any(any(row) for row in self.advantages if row is not None)


def score_group(members: Sequence[Member], scheme: Scheme) -> GroupScore:
    """Vote, reward and normalise one prompt's responses."""
    algorithm = ALGORITHMS[scheme.advantage]
    verdicts = [_verdict(member, scheme) for member in members]
    verifiable = [m for m, member in enumerate(members) if member.answer != "unverifiable"]
    unjudged = [m for m in verifiable if verdicts[m] is None] if algorithm.step_penalties else []
    dropped = set(unjudged) if scheme.unjudged == "drop" else set()
    kept = [m for m in verifiable if m not in dropped]

    penalties = algorithm.step_penalties and not (unjudged and scheme.unjudged == "outcome_only")
    process_weight = scheme.process_weight if penalties else 0.0
    scored = tuple(_score(*pair, scheme.outcome_weight, process_weight) for pair in zip(members, verdicts, strict=True))

    advantages: list[tuple[float, ...] | None] = [None] * len(members)
    if kept:
        outcome_rewards = [_outcome_reward(members[m], scheme.outcome_weight) for m in kept]
        rows = algorithm.normalise([scored[m].token_rewards for m in kept], outcome_rewards)
        for m, row in zip(kept, rows, strict=True):
            advantages[m] = row
    return GroupScore(
        members=scored,
        advantages=tuple(advantages),
        num_unverifiable=len(members) - len(verifiable),
        num_unjudged=len(unjudged),
    )


def _verdict(member: Member, scheme: Scheme) -> Verdict | None:
    verdict = vote(member.critiques, len(member.steps), scheme.vote)
    return verdict if verdict.num_valid >= max(scheme.min_valid_critiques, 1) else None


def _outcome_reward(member: Member, outcome_weight: float) -> float:
    return outcome_weight * (member.answer == "correct")


def _score(member: Member, verdict: Verdict | None, outcome_weight: float, process_weight: float) -> Scored:
    """An unjudged response has its outcome reward, so that the gap to judged ones can be told."""
    return Scored(
        rollout=member.rollout,
        steps=member.steps,
        critiques=member.critiques,
        verdict=verdict,
        answer=member.answer,
        token_rewards=token_rewards(
            len(member.rollout.token_ids),
            member.steps if verdict else (),
            verdict.weights if verdict else (),
            outcome_reward=_outcome_reward(member, outcome_weight),
            process_weight=process_weight,
        ),
    )
