"""What a laboratory found, as a page: tables with 95 % intervals, learning curves, and a verdict in words.

Works on whatever runs are finished, so that it can be looked at while others go on. Shares are told in percentage
points. Leaves out how runs are read (see `lab.runs`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from math import inf, isnan, nan, sqrt
from statistics import fmean, stdev

from capo_ray import plots
from capo_ray.lab.design import Design
from capo_ray.lab.intervals import Interval, interval, paired
from capo_ray.lab.runs import Result

BOTH = "truth/right_answer_and_process"
OUTCOME = "outcome/accuracy"
Measure = Callable[[Result], float | None]


def _after(name: str, scale: float = 1.0) -> Measure:
    def measure(result: Result) -> float | None:
        value = result.after.get(name, nan)
        return None if isnan(value) else scale * value

    return measure


def _mean(name: str, scale: float = 1.0) -> Measure:
    def measure(result: Result) -> float | None:
        value = result.mean(name)
        return None if value is None else scale * value

    return measure


def gain(result: Result) -> float:
    """Points by which right answers with a right process rose."""
    return 100 * (result.after[BOTH] - result.before[BOTH])


def _per_point(total: str) -> Measure:
    def measure(result: Result) -> float | None:
        return result.total(total) / gain(result) if gain(result) > 1 else None

    return measure


COLUMNS: tuple[tuple[str, Measure], ...] = (
    ("right answer and process, %", _after(BOTH, 100)),
    ("right answer, %", _after(OUTCOME, 100)),
    ("right steps, %", _after("truth/step_accuracy", 100)),
    ("tokens", _after("response/mean_tokens")),
    ("steps", _after("response/mean_steps")),
    ("entropy, last step", lambda result: result.steps[-1].get("trainer/entropy") if result.steps else None),
    ("groups with credit, %", _mean("group/credit_share", 100)),
    ("critic precision, %", _mean("critic/precision", 100)),
    ("critic recall, %", _mean("critic/recall", 100)),
    ("s per point", _per_point("seconds/step")),
    ("critic tokens per point", _per_point("tokens/critiques")),
)
"""Of the held-out evaluation after the last step, of the steps' mean, and what a point of the first column cost.

A group has credit when a token of it has an advantage: not so under GRPO when all its answers are right or all wrong.
"""


def figure_of(group: str) -> str:
    """Name of the file that `page` shows for a group of arms; `curves` draws it."""
    return f"{group.replace(' ', '-')}.svg"


def page(design: Design, results: Sequence[Result]) -> str:
    """The report as Markdown, which shows a figure per group."""
    if not results:
        return f"# {design.title}\n\nNo run is finished yet.\n"
    arms = {name: [result for result in results if result.arm == name] for name in design.arms}
    arms = {name: found for name, found in arms.items() if found}
    parts = [f"# {design.title}\n", _what_was_run(design, arms)]
    for group in design.groups():
        if any(name in arms for name in design.own(group)):
            parts += [
                f"## {group[0].upper()}{group[1:]}\n",
                f"![Right answer and process by step, mean and standard error over seeds]({figure_of(group)})\n",
                _table(design, {name: arms[name] for name in design.members(group) if name in arms}),
                _verdicts(design, group, arms),
            ]
    return "\n".join(parts)


def every_run(results: Sequence[Result]) -> str:
    """What each run measured, as comma-separated values; empty where something could not be measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "right answer and process before, %", *(name for name, _ in COLUMNS)])
    for result in results:
        values = [measure(result) for _, measure in COLUMNS]
        told = ["" if value is None else f"{value:.6g}" for value in (100 * result.before[BOTH], *values)]
        writer.writerow([result.arm, result.seed, *told])
    return text.getvalue()


def _what_was_run(design: Design, arms: Mapping[str, Sequence[Result]]) -> str:
    start = interval([100 * found.before[BOTH] for results in arms.values() for found in results])
    return (
        f"{sum(map(len, arms.values()))} of {len(design.runs())} runs. Before training {start.mean:.1f} % of the "
        "held-out responses have a right answer and a right process. Mean and 95 % interval (Student's t) over seeds; "
        f"differences to `{design.baseline}` are taken seed by seed.\n"
    )


def _table(design: Design, arms: Mapping[str, Sequence[Result]]) -> str:
    rows = ["| arm | | seeds | " + " | ".join(name for name, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, found in arms.items():
        cells = [_cell([measure(result) for result in found]) for _, measure in COLUMNS]
        rows.append(f"| `{name}` | {design.arms[name].says} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    found = interval(known)
    digits = 0 if abs(found.mean) >= 1000 else 2 if abs(found.mean) < 3 else 1
    return f"{found.mean:,.{digits}f}" + (f" ± {found.half:,.{digits}f}" if found.half < inf else "")


def _verdicts(design: Design, group: str, arms: Mapping[str, Sequence[Result]]) -> str:
    """Every arm of `group` against each that it is compared with."""
    lines = []
    for other in design.compared_with(group):
        for name in design.own(group):
            if name == other or name not in arms or other not in arms:
                continue
            ours, theirs = arms[name], arms[other]
            measures = (("right answer and process", BOTH), ("right answer", OUTCOME))
            told = [_difference(ours, theirs, of) for of in measures]
            tokens = equal_tokens(ours, theirs)
            if tokens is not None:
                told.append(f"at equal tokens, policy's and critic's together: {_points(tokens)}")
            lines.append(f"* `{name}` against `{other}`: " + "; ".join(told) + ".")
    return "\n".join(lines) + "\n" if lines else ""


def _difference(ours: Sequence[Result], theirs: Sequence[Result], of: tuple[str, str]) -> str:
    label, name = of
    found = paired(
        {result.seed: 100 * result.after[name] for result in ours},
        {result.seed: 100 * result.after[name] for result in theirs},
    )
    return f"{label} {_points(found)}" if found else f"{label}: no seed in common"


def _points(found: Interval) -> str:
    """A difference and what can be said of it."""
    if found.half == inf:
        return f"{found.mean:+.1f} points (one seed)"
    told = "" if found.excludes_zero else ", which cannot be told from none"
    return f"{found.mean:+.1f} points ({found.low:+.1f} to {found.high:+.1f}{told})"


def equal_tokens(ours: Sequence[Result], theirs: Sequence[Result]) -> Interval | None:
    """Difference in right answer and process, in points, when both have generated as many tokens as the thriftier run
    of a seed did in all. Of the responses trained on, over three steps."""
    mine, other = ({result.seed: result for result in results} for results in (ours, theirs))
    made: list[float] = []
    for seed in sorted(mine.keys() & other.keys()):
        budget = min(_tokens(mine[seed])[-1:] + _tokens(other[seed])[-1:], default=0.0)
        reached = [_at(result, budget) for result in (mine[seed], other[seed])]
        if None not in reached:
            made.append(100 * (reached[0] - reached[1]))  # type: ignore[operator]
    return interval(made) if made else None


def _tokens(result: Result) -> list[float]:
    """Tokens generated up to the end of each step."""
    total, made = 0.0, []
    for step in result.steps:
        total += (step.get("tokens/sampled") or 0.0) + (step.get("tokens/critiques") or 0.0)
        made.append(total)
    return made


def _at(result: Result, budget: float) -> float | None:
    done = [step for step, spent in zip(result.steps, _tokens(result), strict=True) if spent <= budget]
    recent = [step[BOTH] for step in done[-3:] if step.get(BOTH) is not None]
    return fmean(recent) if recent else None


def curves(design: Design, results: Sequence[Result], group: str) -> str:
    """Right answer and process by step, mean and standard error over seeds, one line per arm of `group` and the
    baseline: an SVG."""
    drawn = {}
    for name in design.members(group):
        found = [result for result in results if result.arm == name]
        if found:
            length = min(len(result.steps) for result in found)
            shares = [[100 * (result.steps[s].get(BOTH) or 0.0) for result in found] for s in range(length)]
            drawn[name] = [(step, fmean(share), _standard_error(share)) for step, share in enumerate(shares, start=1)]
    return plots.lines(drawn, x="step", y="right answer and process, %")


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
