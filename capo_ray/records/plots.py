"""Figures as SVG: lines by step, and points joined in their order. Leaves out what is shown (see who calls).

matplotlib draws them; equal data gives equal bytes, so that a figure in a repository changes only with its numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")
"""Told apart by readers who see no red or no green (Paul Tol's bright scheme)."""
Points = Sequence[tuple[float, float, str]]
"""x, y and what is written beside the point."""


def lines(named: Mapping[str, Sequence[tuple[int, float, float]]], *, x: str, y: str) -> str:
    """A line per name through its (x, y) in a shade of y - spread to y + spread, with a legend beside the plot; `x` and
    `y` name the axes."""

    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(named.items()):
            colour, style = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
            at = [point[0] for point in points]
            axes.plot(at, [point[1] for point in points], style, color=colour, label=name, linewidth=1.8)
            low, high = [mid - spread for _, mid, spread in points], [mid + spread for _, mid, spread in points]
            axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(draw, x, y)


def trails(named: Mapping[str, Points], *, x: str, y: str) -> str:
    """Points per name, joined in their order and each with its label, in the unit square."""

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(named.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=colour, label=name, markersize=4)
            for at_x, at_y, label in points:
                axes.annotate(label, (at_x, at_y), xytext=(5, 3), textcoords="offset points", fontsize=8)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))

    return _svg(draw, x, y)


def _svg(draw: Callable[[Axes], None], x: str, y: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "capo_ray", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=x, ylabel=y)
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
