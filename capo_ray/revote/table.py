"""What differs between two ways to score the same critiques: the sums, and the table that is made of them.

Leaves out what is summed up (see `revote`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TextIO

MOST_ROWS = 10


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
    unknown: int = 0
    """Responses of which it is not known what the run's own code made of them."""

    def add(self, other: Change) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


COLUMNS = (
    *("training steps", "responses", "undetermined", "verdicts changed", "flagged before", "flagged"),
    *("reward before", "reward", "signs changed"),
)


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
    known = not total.unknown
    return (
        name,
        str(total.responses),
        _percent(total.undetermined, total.responses),
        _percent(total.verdicts, known * (total.responses - total.undetermined)),
        _percent(total.flagged_before, known * total.steps),
        _percent(total.flagged, total.steps),
        _mean(total.reward_before, known * total.tokens),
        _mean(total.reward, total.tokens),
        _percent(total.signs, known * total.advantage_tokens),
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
