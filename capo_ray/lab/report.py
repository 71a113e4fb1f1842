"""What a laboratory found, as a page: tables with 95 % intervals, learning curves, and a verdict in words.

Works on whatever runs are finished, so that it can be looked at while others go on. Shares are told in percentage
points. Leaves out how runs are read (see `lab.runs`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, isnan, nan, sqrt
from statistics import fmean, stdev

from capo_ray.lab.design import Design
from capo_ray.lab.intervals import Interval, interval, paired
from capo_ray.lab.runs import Result
from capo_ray.records import plots

BOTH = "truth/right_answer_and_process"
OUTCOME = "outcome/accuracy"
COMPARED = (("right answer and process", BOTH), ("right answer", OUTCOME))
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


COLUMNS: tuple[tuple[str, Measure], ...] = (
    ("right answer and process, %", _after(BOTH, 100)),
    ("right answer, %", _after(OUTCOME, 100)),
    ("right steps, %", _after("truth/step_accuracy", 100)),
    ("tokens", _after("response/mean_tokens")),
    ("steps", _after("response/mean_steps")),
    ("entropy, last step", lambda result: result.steps[-1].get("trainer/entropy") if result.steps else None),
    ("groups with credit, %", _mean("group/credit_share", 100)),
    ("vote's precision, %", _mean("critic/precision", 100)),
    ("vote's recall, %", _mean("critic/recall", 100)),
    ("gain, points", gain),
    ("seconds", lambda result: result.total("seconds/step")),
    ("critique tokens", lambda result: result.total("tokens/critiques")),
)
"""Of the held-out evaluation after the last step, of the mean over steps, and of all steps together.

A group has credit when a token of it has an advantage: not so under GRPO when all its answers are right or all wrong.
Precision and recall are those of the flags that were paid by, against the truth. The gain is that of the first column.
"""
PER_POINT = (("s per point", "seconds"), ("critique tokens per point", "critique tokens"))
"""What a point of gain cost: of all seeds of an arm together, so that none is left out."""


def figure_of(group: str) -> str:
    """Name of the file that `page` shows for a group of arms; `curves` draws it."""
    return re.sub(r"\W+", "-", group.lower()) + ".svg"


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
                _table(design, members(design, group, results)),
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
    start = interval([100 * found.before[BOTH] for found in _untrained(arms)])
    return (
        f"{sum(map(len, arms.values()))} of {len(design.runs())} runs. Before training {start.mean:.1f} % of the "
        "held-out responses have a right answer and a right process. Mean and 95 % interval (Student's t) over seeds; "
        "differences are taken seed by seed.\n"
    )


def _untrained(arms: Mapping[str, Sequence[Result]]) -> list[Result]:
    """What would have been measured without a step, one per seed: arms start alike."""
    of_seed = {result.seed: result for results in arms.values() for result in results}
    return [replace(of_seed[seed], after=of_seed[seed].before, steps=()) for seed in sorted(of_seed)]


def _table(design: Design, arms: Mapping[str, Sequence[Result]]) -> str:
    shown = [column for column in COLUMNS if column[0] not in dict(PER_POINT).values()]
    heads = ["arm", "", "seeds", *(name for name, _ in (*shown, *PER_POINT))]
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    untrained = _untrained(arms)
    known = ["" if measure is gain else _cell([measure(result) for result in untrained]) for _, measure in shown]
    rows.append(f"| | before training | {len(untrained)} | " + " | ".join([*known, *("" for _ in PER_POINT)]) + " |")
    for name, found in arms.items():
        cells = [_cell([measure(result) for result in found]) for _, measure in shown]
        cells += [_per_point(found, total) for _, total in PER_POINT]
        rows.append(f"| `{name}` | {design.arms[name].says} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    found = interval(known)
    digits = 0 if abs(found.mean) >= 1000 else 2 if abs(found.mean) < 3 else 1
    return f"{found.mean:,.{digits}f}" + (f" ± {found.half:,.{digits}f}" if found.half < inf else "")


def _per_point(found: Sequence[Result], total: str) -> str:
    gained = sum(map(gain, found))
    spent = sum(dict(COLUMNS)[total](result) or 0.0 for result in found)
    return "" if gained <= len(found) or not spent else f"{spent / gained:,.{0 if spent / gained >= 100 else 1}f}"


def _verdicts(design: Design, group: str, arms: Mapping[str, Sequence[Result]]) -> str:
    """Every arm of `group` against each that it is compared with."""
    lines = []
    for name in design.own(group):
        for other in design.against(name):
            if name in arms and other in arms:
                told = [_difference(arms[name], arms[other], of) for of in COMPARED]
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
    few = " on two seeds" if found.count == 2 else ""
    return f"{found.mean:+.1f} points ({found.low:+.1f} to {found.high:+.1f}{few}{told})"


def members(design: Design, group: str, results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of the arms in the table of `group`. Of arms that its own are compared with, those of the seeds that
    its own have, so that means in one table are over the same seeds."""
    own = design.own(group)
    seeds = {result.seed for result in results if result.arm in own}
    found = {
        name: [result for result in results if result.arm == name and (name in own or result.seed in seeds)]
        for name in design.members(group)
    }
    return {name: results for name, results in found.items() if results}


def curves(design: Design, results: Sequence[Result], group: str) -> str:
    """Right answer and process by step, mean and standard error over seeds, one line per arm in the table of `group`.
    An SVG. A step that some seed has no value for is left out."""
    drawn = {}
    for name, found in members(design, group, results).items():
        points = []
        for step, lines in enumerate(zip(*(result.steps for result in found), strict=False), start=1):
            shares = [100 * line[BOTH] for line in lines if line.get(BOTH) is not None]
            if len(shares) == len(found):
                points.append((step, fmean(shares), _standard_error(shares)))
        drawn[name] = points
    return plots.lines(drawn, x="step", y="right answer and process, %")


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
