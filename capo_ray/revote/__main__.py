"""`python -m capo_ray.revote RUN_DIR [key=value ...]`: what another vote would have made of a run.

From the ledger alone (see `records.ledger`), without GPU and without Ray: votes, token rewards and advantages are
computed again by the path that training takes, `credit.group.score_group`, once as the run did and once with the keys
given (`vote=majority process_weight=0.5 advantage=capo_mean`), and what differs is shown by range of steps. A key that
is not given is the run's own. A vote or an advantage of the author's own (`module:name`) is code, and run with
`trust=true` alone: without, another is to be given, and what the run's own made of it is not known (`-`). Where the run
stopped asking before the new vote is decided, the response is undetermined: it is counted and left out. A group that a
refill replaced is left out where no token of it has an advantage. `out` gets a line per response. Leaves out a KL term
in the reward, and what the policy would have become: the responses are those that were sampled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from typing import Annotated, Any, TextIO, get_type_hints

from pydantic import create_model

from capo_ray import extension
from capo_ray.arguments import BadArgument
from capo_ray.config.block import Block, setting
from capo_ray.config.listing import listing
from capo_ray.config.method import Algorithm, Reward
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.credit.advantage import algorithm_of
from capo_ray.credit.group import GroupScore, Member, Scheme, score_group
from capo_ray.credit.vote import check_vote, sealed
from capo_ray.files.output import check_output, output_file
from capo_ray.learn.batch import centre_and_spread
from capo_ray.program import run_program
from capo_ray.records.ledger import LedgerError, RecordedGroup, read
from capo_ray.records.scheme import RecordedScheme
from capo_ray.records.tally import count_group
from capo_ray.revote.table import Change, rows_of, show

USAGE = """usage: python -m capo_ray.revote RUN_DIR [key=value ...]

What another vote, other rewards or another advantage would have made of a run, from its ledger. A key that is not given
(null) is the run's own.

  python -m capo_ray.revote runs/first vote=majority process_weight=0.5

Exit code 0, 1 where the result cannot be written, 2 where the run or a key cannot be used.
"""
OWN: dict[str, Callable[[str], object]] = {"advantage": algorithm_of, "vote": check_vote}
"""Keys that take `module:name` too, and what finds it."""
CHOICES = [name for name in get_type_hints(Scheme) if name != "outcome"]
"""What of a scheme can be given."""
Rows = Sequence[Sequence[float] | None]
"""[member][T]; None: dropped or undetermined."""


class Asked(Block):
    """Of this program; `Settings` has what can be given of a scheme beside it."""

    run_dir: AnyPath = setting("directory of the run; RUN_DIR alone is it too")
    out: AnyPath | None = setting("file for a line per response; null: none", None)
    trust: bool = setting("run code that the run names as its vote or advantage (module:name)", False)

    @property
    def given(self) -> dict[str, Any]:
        """What is given of a scheme."""
        return self.model_dump(include=set(CHOICES), exclude_none=True)


def _as_of_a_run(name: str) -> Any:
    """Type and field: as a run has it, or null."""
    field = {**Reward.model_fields, **Algorithm.model_fields}[name]
    kind: Any = Annotated[field.annotation, field.description, *field.metadata]  # type: ignore[name-defined]
    return kind | None, setting(field.description or "", None)


Settings = create_model("Settings", __base__=Asked, **{name: _as_of_a_run(name) for name in CHOICES})


def is_open(member: Member, before: Scheme | None, after: Scheme) -> bool:
    """Whether the run stopped asking because its own verdict was sealed, and the one of `after` is not. None: the run's
    own vote is not known, so any that were not asked for may be missing for that.

    Where critiques are missing for another reason, no critic was up or a round failed, they would be missing under any
    vote.
    """
    asked = [critique for critique in member.critiques if critique.outcome != "not_asked"]
    left = len(member.critiques) - len(asked)
    if before is None:
        kept = {"min_valid_critiques": after.min_valid_critiques}
        return left > 0 and not sealed(asked, left, len(member.steps), after.vote, **kept)
    own, new = (
        sealed(asked, left, len(member.steps), scheme.vote, min_valid_critiques=scheme.min_valid_critiques)
        for scheme in (before, after)
    )
    return own and not new


@dataclass(frozen=True, slots=True)
class Revoted:
    """One group, scored in two ways."""

    group: RecordedGroup
    before: GroupScore
    after: GroupScore
    advantages_before: Rows
    advantages: Rows
    open_verdicts: tuple[bool, ...]
    open_rewards: tuple[bool, ...]
    open_advantages: bool
    known: bool
    """Whether `before` is what the run made of it."""


def revote(groups: Sequence[RecordedGroup], recorded: RecordedScheme, after: Scheme) -> list[Revoted]:
    """All groups of one step, scored as the run did and as `after` says; as `after` says both times where the run's own
    code is not trusted."""
    known = not recorded.replaced
    before = recorded.scheme if known else after
    scores = [[score_group(group.members, scheme) for group in groups] for scheme in (before, after)]
    own = before if known else None
    open_verdicts = [tuple(is_open(member, own, after) for member in group.members) for group in groups]
    open_groups = [any(row) and after.needs_judge for row in open_verdicts]
    pays = algorithm_of(after.advantage).step_penalties
    everyone = after.unjudged == "outcome_only"  # one member that may be unjudged changes the rewards of all
    spare = [[group.spare and not score.has_credit for group, score in zip(groups, row, strict=True)] for row in scores]
    rows_before = _trained(scores[0], before, spare[0])
    rows = _trained(scores[1], after, [a or b for a, b in zip(open_groups, spare[1], strict=True)])
    return [
        Revoted(
            group=group,
            before=scores[0][g],
            after=scores[1][g],
            advantages_before=rows_before[g],
            advantages=rows[g],
            open_verdicts=open_verdicts[g],
            open_rewards=tuple(pays and (is_it or (everyone and open_groups[g])) for is_it in open_verdicts[g]),
            open_advantages=open_groups[g],
            known=known,
        )
        for g, group in enumerate(groups)
    ]


def _trained(scores: Sequence[GroupScore], scheme: Scheme, left_out: Sequence[bool]) -> list[Rows]:
    """Advantages as they are trained on; over a batch they are standardised by the groups that are not left out."""
    centre, spread = 0.0, 1.0
    if algorithm_of(scheme.advantage).over_batch:
        known = [score for score, out in zip(scores, left_out, strict=True) if not out]
        centre, spread = centre_and_spread(count_group(score, [None] * len(score.members)) for score in known)
    made: list[Rows] = []
    for score, out in zip(scores, left_out, strict=True):
        alone = out or score.num_compared < 2  # then the group is not trained on
        made.append(
            [None if row is None or alone else [(value - centre) / spread for value in row] for row in score.advantages]
        )
    return made


def change_of(revoted: Revoted) -> Change:
    members = len(revoted.group.members)
    change = Change(responses=members, unknown=0 if revoted.known else members)
    for m, (before, after) in enumerate(zip(revoted.before.members, revoted.after.members, strict=True)):
        if revoted.open_verdicts[m]:
            change.undetermined += 1
        else:
            old, new = before.verdict, after.verdict
            change.verdicts += (old and old.weights) != (new and new.weights)
            change.steps += len(after.steps)
            change.flagged_before += len(old.wrong_steps) if old else 0
            change.flagged += len(new.wrong_steps) if new else 0
        if not revoted.open_rewards[m]:
            change.tokens += len(after.token_rewards)
            change.reward_before += fsum(before.token_rewards)
            change.reward += fsum(after.token_rewards)
        if not revoted.open_advantages:
            rows = revoted.advantages_before[m], revoted.advantages[m]
            signs = [[_sign(value) for value in row or [0.0] * len(after.token_rewards)] for row in rows]
            change.advantage_tokens += len(signs[0])
            change.signs += sum(a != b for a, b in zip(*signs, strict=True))
    return change


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def lines_of(revoted: Revoted) -> Iterator[str]:
    """A line of `out` for each response; null stands for what is undetermined, and for a dropped one's advantages."""
    for m, scored in enumerate(revoted.after.members):
        verdict = scored.verdict
        row = {
            "step": revoted.group.step,
            "prompt_id": revoted.group.prompt_id,
            "response": scored.rollout.index,
            "undetermined": revoted.open_verdicts[m],
            "weights": None if revoted.open_verdicts[m] or verdict is None else verdict.weights,
            "token_rewards": None if revoted.open_rewards[m] else scored.token_rewards,
            "advantages": None if revoted.open_advantages else revoted.advantages[m],
        }
        yield json.dumps(row) + "\n"


# ---- the command line ------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str]) -> Asked:
    """Raises ConfigError or BadArgument."""
    asked = read_own(Settings, argv, place="run_dir")
    for key in asked.given.keys() & OWN.keys():
        try:
            OWN[key](asked.given[key])
        except ValueError as error:
            raise BadArgument(f"{key}={asked.given[key]}: {error}") from None
    return asked


def run(run_dir: Path, given: Mapping[str, Any], out: Path | None, screen: TextIO, *, trust: bool = False) -> int:
    changes: dict[int, Change] = {}
    with output_file(out) if out else nullcontext() as file:
        for recorded, groups in read(run_dir, trust=trust):
            for revoted in revote(groups, recorded, _after(recorded, given, groups)):
                changes.setdefault(revoted.group.step, Change()).add(change_of(revoted))
                if file:
                    file.writelines(lines_of(revoted))
    keys = " ".join(f"{key}={value}" for key, value in given.items()) or "the run's own vote"
    show(rows_of(changes), f"{run_dir}: before, and with {keys}", screen)
    return 0


def _after(recorded: RecordedScheme, given: Mapping[str, Any], groups: Sequence[RecordedGroup]) -> Scheme:
    if missing := next((key for key in recorded.replaced if key not in given), None):
        raise BadArgument(
            f"the run's {missing} is {recorded.replaced[missing]}, code of its author's, which is "
            f"not run: give another {missing}=NAME, or pass trust=true where you trust it and it is at hand"
        )
    try:
        check_vote(recorded.scheme.vote)
    except ValueError as error:
        raise BadArgument(f"the run's vote is {error}") from None
    after = replace(recorded.scheme, **given)
    most = max((len(member.critiques) for group in groups for member in group.members), default=0)
    if after.vote == "greedy" and most > 1:
        raise BadArgument(f"vote=greedy takes one critique, and step {groups[0].step} has {most} for each response")
    return after


def work(told: list[str]) -> int:
    asked = arguments(told)
    if asked.out:
        check_output(asked.out)
    try:
        return run(asked.run_dir, asked.given, asked.out, sys.stdout, trust=asked.trust)
    except (LedgerError, extension.NotLoaded) as error:
        raise BadArgument(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings))


if __name__ == "__main__":
    sys.exit(main())
