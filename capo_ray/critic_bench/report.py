"""The scores of a critic as a table, as JSON and as a plot of precision against recall.

The plot is SVG written by hand: a plotting library would be one more thing to install.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from capo_ray.credit.vote import Vote
from capo_ray.critic_bench.replies import Reply, seconds_of
from capo_ray.critic_bench.scores import SIZES, VOTES, advise, score, summary
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
    ("adaptive tokens", "adaptive_tokens"),
)
COLOURS: dict[Vote, str] = {
    "intersection": "#0072b2",
    "majority": "#d55e00",
    "strict_majority": "#cc79a7",
    "union": "#009e73",
    "average": "#e69f00",
}


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


_SIDE, _LEFT, _TOP = 360, 60, 20


def plot(figures: JsonDict) -> str:
    """Precision against recall as SVG: a line per vote, a point per k."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _SIDE + 170}" height="{_TOP + _SIDE + 50}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#888"/>',
        _text(_LEFT + _SIDE / 2, _TOP + _SIDE + 38, "recall of wrong steps"),
        f'<g transform="rotate(-90 16 {_TOP + _SIDE / 2})">{_text(16, _TOP + _SIDE / 2, "precision of flags")}</g>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _point(tick, tick)
        parts += [_text(x, _TOP + _SIDE + 18, f"{tick:g}"), _text(_LEFT - 20, y + 4, f"{tick:g}")]
    for number, (how, colour) in enumerate(COLOURS.items()):
        rows = [row for row in figures["scores"] if row["vote"] == how]
        known = [(row["k"], *_point(row["recall"], row["precision"])) for row in rows if _has_point(row)]
        path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in known)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for k, x, y in known:
            about = f"<title>{how}, k = {k}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{about}</circle>')
            parts.append(_text(x + 9, y - 5, str(k)))
        legend = _TOP + 20 + 20 * number
        parts.append(f'<circle cx="{_LEFT + _SIDE + 20}" cy="{legend - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(_LEFT + _SIDE + 32, legend, how, anchor="start"))
    return "\n".join([*parts, "</svg>\n"])


def _has_point(row: dict[str, Any]) -> bool:
    return row["precision"] is not None and row["recall"] is not None


def _point(recall: float, precision: float) -> tuple[float, float]:
    return _LEFT + _SIDE * recall, _TOP + _SIDE * (1 - precision)


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
