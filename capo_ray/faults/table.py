"""What a folder of faults says, as a page: promises and what was seen, samples, memory, and the numbers of the runs.

Pure but for reading the folder. Leaves out trying anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from capo_ray.faults.kinds import KINDS
from capo_ray.faults.record import CURVE, FAULTS, MEMORY, RUNS, read
from capo_ray.types import JsonDict

WARM_STEPS, LEAST_STEPS = 30, 40
"""Steps of a process that are left out of its slope, and how many there must be besides."""
CURVE_STEPS = 50
"""Shorter runs say nothing of learning, where there are longer ones."""
Curve = dict[int, list[float | None]]
"""Step -> values of record.CURVE."""


def page(out: Path) -> str:
    faults, runs = read(out / FAULTS), read(out / RUNS)
    parts = (_faults(faults), _runs(runs), _numbers(out), _memory(read(out / MEMORY), {line["run"] for line in faults}))
    return "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"


def _faults(faults: Sequence[JsonDict]) -> Iterator[str]:
    by_kind: dict[str, list[JsonDict]] = defaultdict(list)
    for line in faults:
        by_kind[line["kind"]].append(line)
    failed = sum(bool(line["failures"]) for line in faults)
    yield f"{len(faults)} faults of {len(by_kind)} kinds; a promise was broken {failed} times."
    yield ""
    yield "| fault | promised | tried | broken | noticed, s: median, most | two steps on, s: median, most |"
    yield "|---|---|---|---|---|---|"
    for kind in KINDS.values():
        if lines := by_kind.get(kind.name):
            broken = sum(bool(line["failures"]) for line in lines)
            seen = " | ".join(_seconds([line[name] for line in lines]) for name in ("noticed_s", "recovered_s"))
            yield f"| {kind.name} | {kind.promise} | {len(lines)} | {broken} | {seen} |"


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.0f}, {max(known):.0f}" if known else "-"


def _runs(runs: Sequence[JsonDict]) -> Iterator[str]:
    if not runs:
        return
    steps, responses, tokens = (sum(run[name] for run in runs) for name in ("steps", "responses", "trained_tokens"))
    broken = sum(len(run["findings"]) for run in runs)
    badly = [failure for run in runs for failure in run["failures"] if failure not in run["findings"]]
    hours = sum(run["seconds"] for run in runs) / 3600
    yield f"{len(runs)} runs, {hours:.1f} hours, {steps:,} steps. Of their {responses:,} responses, {tokens:,} tokens"
    yield f"of which were trained on, {broken or 'none'} {'is' if broken == 1 else 'are'} found to be lost uncounted,"
    gap = max(run["largest_gap"] for run in runs)
    yield f"trained on twice, too old or from other weights; log-probabilities differ by {gap:.1e} at most."
    if badly:
        yield f"{len(badly)} of the {len(runs)} runs did not end as they were to: {badly[0].split(':')[0]}."


def same_numbers(out: Path) -> tuple[int, int]:
    """Steps that an undisturbed run of the same seed made too, and those of them with other numbers: there are to be
    none, whatever was done to a run."""
    quiet, hit, curves = _curves(out)
    compared = other = 0
    for run in hit:
        beside = [curves[calm["run"]] for calm in quiet if calm["seed"] == run["seed"]]
        for step, values in curves[run["run"]].items():
            if there := [calm[step] for calm in beside if step in calm]:
                compared += 1
                other += not all(_alike(values, of) for of in there)
    return compared, other


def _numbers(out: Path) -> Iterator[str]:
    quiet, hit, curves = _curves(out)
    if not quiet or not hit:
        return
    compared, other = same_numbers(out)
    steps = sum(len(curves[run["run"]]) for run in hit)
    seen = f"{compared:,} of {steps:,} steps of disturbed runs were made by an undisturbed run of the same seed too"
    yield f"{seen}, {other or 'none'} with other numbers"
    yield f"({', '.join(CURVE)})."
    lengths = {run["run"]: max(curves[run["run"]]) for run in (*quiet, *hit)}
    long = [length for length in lengths.values() if length >= CURVE_STEPS]
    last = min(long or lengths.values())
    for name, runs in (("undisturbed", quiet), ("disturbed", hit)):
        runs = [run for run in runs if lengths[run["run"]] >= last]
        if not runs:
            continue
        means = [mean(values[0] or 0.0 for step, values in curves[run["run"]].items() if step <= last) for run in runs]
        seen = f"{min(means):.3f} to {max(means):.3f}"
        yield f"{CURVE[0]}, mean of the first {last} steps, of {len(means)} {name} runs: {seen}."


def _curves(out: Path) -> tuple[list[JsonDict], list[JsonDict], dict[int, Curve]]:
    """Runs that were left alone, those that were not, and by run and step the numbers of all."""
    runs, disturbed = read(out / RUNS), {line["run"] for line in read(out / FAULTS)}
    runs = [run for run in runs if run.get("curve")]
    curves = {run["run"]: {int(step): values for step, values in run["curve"].items()} for run in runs}
    sorted_out: tuple[list[JsonDict], list[JsonDict]] = ([], [])
    for run in runs:
        sorted_out[run["run"] in disturbed].append(run)
    return *sorted_out, curves


def _alike(mine: Sequence[float | None], theirs: Sequence[float | None]) -> bool:
    pairs = zip(mine, theirs, strict=True)
    return all(a == b or (a is not None and b is not None and abs(a - b) <= 1e-4 + 1e-4 * abs(b)) for a, b in pairs)


def _memory(samples: Sequence[JsonDict], hit: Collection[int]) -> Iterator[str]:
    """Per process that lived long enough: the slope of a line through its samples, least squares. Those of runs that
    were left alone (those that were not: `hit`) stand apart, since a program keeps something of each restart."""
    of: dict[tuple[str, int, int], list[tuple[float, float]]] = defaultdict(list)
    for line in samples:
        if line["mib"]:  # one that has ended, and that nobody has reaped, has none
            of[line["part"], line["run"], line["pid"]].append((line["step"], line["mib"]))
    slopes: dict[tuple[str, bool], list[tuple[float, float, float]]] = defaultdict(list)
    for (part, run, _), points in of.items():
        warm = [point for point in points if point[0] >= points[0][0] + WARM_STEPS]
        if len(warm) > 2 and (steps := warm[-1][0] - warm[0][0]) >= LEAST_STEPS:
            slopes[part, run in hit].append((slope(warm), steps, warm[-1][1]))
    if slopes:
        yield f"Memory of its own, of each process, over {LEAST_STEPS} steps at least after its first {WARM_STEPS}:"
        yield ""
        yield "| process | its run | how many | MiB a step: median, most | steps, most | MiB at the end, most |"
        yield "|---|---|---|---|---|---|"
    for (part, disturbed), found in sorted(slopes.items()):
        alone = "disturbed" if disturbed else "left alone"
        rates, steps_of, ends = zip(*found, strict=True)
        yield (
            f"| {part} | {alone} | {len(found)} | {median(rates):.3f}, {max(rates):.3f} | {max(steps_of):.0f} | "
            f"{max(ends):.0f} |"
        )


def slope(points: Sequence[tuple[float, float]]) -> float:
    across, along = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - across) ** 2 for x, _ in points)
    return sum((x - across) * (y - along) for x, y in points) / spread if spread else 0.0
