"""`python -m capo_ray.revote RUN_DIR [KEY=VALUE ...] [out=FILE.jsonl]`: what another vote would have made of a run.

From the ledger alone (see `ledger`), without GPU and without Ray: votes, token rewards and advantages are computed
again by the path that training takes, `credit.group.score_group`, once as the run did and once with the keys given
(`vote=majority process_weight=0.5 advantage=capo_mean`), and what differs is shown by range of steps. A key that is not
given is the run's own. Where the run stopped asking before the new vote is decided, the response is undetermined: it is
counted and left out. A group that a refill replaced is left out where no token of it has an advantage. `out` gets a
line per response. Leaves out a KL term in the reward, and what the policy would have become: the responses are those
that were sampled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from math import fsum, isfinite
from pathlib import Path
from typing import Any, Literal, TextIO, get_args, get_origin, get_type_hints

from capo_ray.credit.advantage import algorithm_of
from capo_ray.credit.group import GroupScore, Member, Scheme, score_group
from capo_ray.credit.vote import sealed, weight_of
from capo_ray.learn.batch import centre_and_spread
from capo_ray.ledger import LedgerError, RecordedGroup, read
from capo_ray.tally import count_group

USAGE = "usage: python -m capo_ray.revote RUN_DIR [KEY=VALUE ...] [out=FILE.jsonl]"
KINDS = {name: kind for name, kind in get_type_hints(Scheme).items() if name != "outcome"}
"""What can be given beside `out`, and its type."""
OWN: dict[str, Callable[[str], object]] = {"advantage": algorithm_of, "vote": weight_of}
"""Keys that take `module:name` too, and what finds it."""
MOST_ROWS = 10
Rows = Sequence[Sequence[float] | None]
"""[member][T]; None: dropped or undetermined."""


class BadArgument(ValueError):
    """The command line cannot be followed; the message says why."""


@dataclass(slots=True)
class Change:
    """What differs between two ways to score the same critiques, as sums."""

    responses: int = 0
    undetermined: int = 0
    """Responses whose verdict the new vote leaves open; they count in nothing below."""
    verdicts: int = 0
    steps: int = 0
    flagged_before: int = 0
    flagged: int = 0
    tokens: int = 0
    """Of responses whose rewards are known."""
    reward_before: float = 0.0
    reward: float = 0.0
    advantage_tokens: int = 0
    """Of groups whose advantages are known."""
    signs: int = 0
    """Tokens among them whose advantage has another sign; what is not trained on has 0."""

    def add(self, other: Change) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def is_open(member: Member, before: Scheme, after: Scheme) -> bool:
    """Whether the run stopped asking because its own verdict was sealed, and the one of `after` is not.

    Where critiques are missing for another reason, no critic was up or a round failed, they would be missing under any
    vote.
    """
    asked = [critique for critique in member.critiques if critique.outcome != "not_asked"]
    left = len(member.critiques) - len(asked)
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


def revote(groups: Sequence[RecordedGroup], before: Scheme, after: Scheme) -> list[Revoted]:
    """All groups of one step, scored as the run did and as `after` says."""
    scores = [[score_group(group.members, scheme) for group in groups] for scheme in (before, after)]
    open_verdicts = [tuple(is_open(member, before, after) for member in group.members) for group in groups]
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
    change = Change(responses=len(revoted.group.members))
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


# ---- the table -------------------------------------------------------------------------------------------------------

COLUMNS = (
    "steps", "responses", "undetermined", "verdicts changed", "flagged before", "flagged", "reward before", "reward",
    "signs changed",
)  # fmt: skip


def rows_of(changes: Mapping[int, Change]) -> list[tuple[str, ...]]:
    """A row per range of steps, at most MOST_ROWS of equal length, and the total."""
    steps = sorted(changes)
    size = -(-len(steps) // MOST_ROWS)
    ranges = [steps[at : at + size] for at in range(0, len(steps), size)]
    rows = [_row(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]), [changes[step] for step in r]) for r in ranges]
    return [*rows, _row("all", list(changes.values()))]


def _row(name: str, changes: Sequence[Change]) -> tuple[str, ...]:
    total = Change()
    for change in changes:
        total.add(change)
    return (
        name,
        str(total.responses),
        _percent(total.undetermined, total.responses),
        _percent(total.verdicts, total.responses - total.undetermined),
        _percent(total.flagged_before, total.steps),
        _percent(total.flagged, total.steps),
        _mean(total.reward_before, total.tokens),
        _mean(total.reward, total.tokens),
        _percent(total.signs, total.advantage_tokens),
    )


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _mean(total: float, count: int) -> str:
    return f"{total / count:+.3f}" if count else "-"


def show(rows: Sequence[tuple[str, ...]], title: str, out: TextIO) -> None:
    """A table on a terminal; elsewhere lines with tabs."""
    if not out.isatty():
        out.writelines("\t".join(row) + "\n" for row in (COLUMNS, *rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row, end_section=row is rows[-2] if len(rows) > 1 else False)
    Console(file=out).print(table)


# ---- the command line ------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str]) -> tuple[Path, dict[str, Any], Path | None]:
    """(run directory, what is given of a scheme, out). Raises BadArgument."""
    folders = [argument for argument in argv if "=" not in argument]
    if len(folders) != 1:
        raise BadArgument(f"name one run directory, got {len(folders)}; {USAGE}")
    given: dict[str, Any] = {}
    out: Path | None = None
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals:
            continue
        if key == "out":
            out = Path(text)
            if not text or not out.parent.is_dir():
                raise BadArgument(f"out={text}: there is no folder {out.parent} to write to")
        elif key in KINDS:
            given[key] = _value(key, text)
        else:
            raise BadArgument(f"{key}: no such key; there are {', '.join([*KINDS, 'out'])}")
    return Path(folders[0]), given, out


def _value(key: str, text: str) -> Any:
    kind = KINDS[key]
    if key in OWN:
        try:
            OWN[key](text)
        except ValueError as error:
            raise BadArgument(f"{key}={text}: {error}") from None
        return text
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise BadArgument(f"{key}={text}: must be one of {', '.join(get_args(kind))}")
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise BadArgument(f"{key}={text}: must be true or false")
        return text == "true"
    try:
        number = kind(text)
    except ValueError:
        raise BadArgument(f"{key}={text}: must be a number{'' if kind is float else ' without a fraction'}") from None
    if not isfinite(number) or number < (kind is int):
        raise BadArgument(f"{key}={text}: must be a finite number from {int(kind is int)}")
    return number


def run(run_dir: Path, given: Mapping[str, Any], out: Path | None, screen: TextIO) -> None:
    changes: dict[int, Change] = {}
    partial = out.with_name(out.name + ".partial") if out else None
    try:
        with partial.open("w", encoding="utf-8") if partial else nullcontext() as file:
            for before, groups in read(run_dir):
                for revoted in revote(groups, before, _after(before, given, groups)):
                    changes.setdefault(revoted.group.step, Change()).add(change_of(revoted))
                    if file:
                        file.writelines(lines_of(revoted))
        if partial and out:
            partial.replace(out)
    finally:
        if partial:
            partial.unlink(missing_ok=True)
    keys = " ".join(f"{key}={value}" for key, value in given.items()) or "the run's own vote"
    show(rows_of(changes), f"{run_dir}: before, and with {keys}", screen)


def _after(before: Scheme, given: Mapping[str, Any], groups: Sequence[RecordedGroup]) -> Scheme:
    after = replace(before, **given)
    most = max((len(member.critiques) for group in groups for member in group.members), default=0)
    if after.vote == "greedy" and most > 1:
        raise BadArgument(f"vote=greedy takes one critique, and step {groups[0].step} has {most} for each response")
    return after


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run_dir, given, out = arguments(sys.argv[1:] if argv is None else argv)
        run(run_dir, given, out, sys.stdout)
    except (BadArgument, LedgerError) as error:
        print(f"python -m capo_ray.revote: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
