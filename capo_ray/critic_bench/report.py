"""The scores of a critic as a table, as JSON and as a plot of precision against recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from capo_ray.credit.vote import Vote
from capo_ray.critic_bench.replies import Reply, seconds_of
from capo_ray.critic_bench.scores import SIZES, VOTES, advise, score, summary
from capo_ray.records import plots
from capo_ray.types import JsonDict

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    ("F1", "f1"),
    ("first error found", "found_first_error"),
    ("correct passed", "passed_correct"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("unjudged", "unjudged"),
    ("tokens, rounds from 1", "adaptive_from_1"),
    ("from 2", "adaptive_from_2"),
)


def evaluate(replies: Sequence[Reply]) -> JsonDict:
    """All figures: `summary`, `scores` (a record per vote and k) and `advice`."""
    judged = [reply.judged for reply in replies]
    most = max(len(response.critiques) for response in judged)
    sizes = [k for k in SIZES if k < most] + [most]
    scores = [score(judged, how, k) for how in VOTES for k in sizes]
    figures = summary(judged, seconds_of(replies))
    return {
        "summary": figures,
        "scores": [asdict(one) for one in scores],
        "advice": advise(scores, figures.get("wrong_step_share", 0.0)),
    }


def table(figures: JsonDict) -> Table:
    """A row per vote and k, to four digits."""
    from rich.table import Table

    made = Table(title="critic_bench")
    for name in ("vote", "k", *(title for title, _ in COLUMNS)):
        made.add_column(name, justify="left" if name == "vote" else "right", no_wrap=True)
    for row in figures["scores"]:
        made.add_row(row["vote"], str(row["k"]), *(digits(row[key]) for _, key in COLUMNS))
    return made


def digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def lines(figures: JsonDict) -> list[str]:
    """What is independent of the vote, and the advice."""
    shown = [f"{name}: {value:.4f}".removesuffix(".0000") for name, value in figures["summary"].items()]
    return [*shown, f"advice: {figures['advice']}"]


def plot(figures: JsonDict) -> str:
    """Precision against recall as SVG: a line per vote, a point per k."""
    trails: dict[str, plots.Points] = {
        how: [(row["recall"], row["precision"], str(row["k"])) for row in figures["scores"] if _is_point(row, how)]
        for how in VOTES
    }
    return plots.trails(trails, x="recall of wrong steps", y="precision of flags")


def _is_point(row: dict[str, Any], how: Vote) -> bool:
    return row["vote"] == how and row["precision"] is not None and row["recall"] is not None
