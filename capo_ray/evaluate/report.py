"""The figures of an evaluation: from graded responses to estimates, as a table and as JSON.

Leaves out grading and asking; reads no file and starts nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING

from capo_ray.credit.flags import flags
from capo_ray.critic_bench.replies import Reply
from capo_ray.evaluate.grading import Equal, steps_right, votes
from capo_ray.evaluate.response import Response
from capo_ray.records.estimates import avg_at_k, estimate, maj_at_k, mean_of, pass_at_k
from capo_ray.seeds import seed_of
from capo_ray.types import JsonDict

if TYPE_CHECKING:
    from rich.table import Table

PerProblem = dict[str, list[float]]
"""By metric, one value per problem."""


def powers(k: int) -> list[int]:
    """2, 4, 8 ... below k, and k; pass@1 is avg@k."""
    return [size for size in (2**n for n in range(1, k.bit_length())) if size < k] + ([k] if k > 1 else [])


def with_process(responses: Sequence[Response]) -> list[Response]:
    """Those whose steps are looked at: the greedy ones, else the sampled ones."""
    greedy = [response for response in responses if response.mode == "greedy"]
    return greedy or list(responses)


async def accuracies(responses: Sequence[Response], equal: Equal | None) -> PerProblem:
    """`greedy`: the mean of its runs; `avg@k`, `pass@j` for j up to k, and `maj@k`: of the k that were sampled."""
    values: PerProblem = defaultdict(list)
    for group in _by_problem(responses):
        greedy = [one for one in group if one.mode == "greedy"]
        sampled = [one for one in group if one.mode == "sampled"]
        if greedy:
            values["greedy"].append(avg_at_k(_right(greedy), len(greedy)))
        if k := len(sampled):
            values[f"avg@{k}"].append(avg_at_k(_right(sampled), k))
            for size in powers(k):
                values[f"pass@{size}"].append(pass_at_k(k, sum(_right(sampled)), size))
            values[f"maj@{k}"].append(maj_at_k(await votes(sampled, equal), 0, k))
    return dict(values)


def process_accuracies(
    responses: Sequence[Response], replies: Mapping[str, Reply], vote: str, min_valid: int, *, checked: bool
) -> PerProblem:
    """Of the responses of `with_process`. `process`: share of those in which the critics' vote flags no step; those
    without enough valid critiques are left out and make up `unjudged`. `process_true`: share of those without a wrong
    step, where the truth of steps is known (`checked`)."""
    values: PerProblem = defaultdict(list)
    for group in _by_problem(with_process(responses)):
        if checked:
            values["process_true"].append(fmean(all(steps_right(one.question, one.response)) for one in group))
        if not replies:
            continue
        judged = [replies[name_of(one)] for one in group]
        flagged = [flags(r.critiques, len(r.item.steps), vote, min_valid_critiques=min_valid) for r in judged]
        values["unjudged"].append(fmean(row is None for row in flagged))
        if known := [not any(row) for row in flagged if row is not None]:
            values["process"].append(fmean(known))
    return dict(values)


def name_of(response: Response) -> str:
    """The id under which a response is judged."""
    return "/".join(map(str, response.key))


def lengths(responses: Sequence[Response]) -> PerProblem:
    groups = _by_problem(responses)
    return {
        "tokens": [fmean(one.num_tokens for one in group) for group in groups],
        "cut_off": [fmean(one.finish == "length" for one in group) for group in groups],
        "no_verdict": [fmean(one.answer == "unverifiable" for one in group) for group in groups],
    }


def _by_problem(responses: Sequence[Response]) -> list[list[Response]]:
    groups: dict[str, list[Response]] = defaultdict(list)
    for response in sorted(responses, key=lambda one: (one.mode, one.index)):
        groups[response.id].append(response)
    return list(groups.values())


def _right(responses: Sequence[Response]) -> list[bool]:
    return [response.answer == "correct" for response in responses]


def figures(benchmarks: Mapping[str, PerProblem], problems: Mapping[str, int], seed: int) -> JsonDict:
    """Estimates by benchmark and metric, and the mean over the benchmarks of every metric that all have."""
    found: JsonDict = {
        name: {"problems": problems[name]}
        | {metric: asdict(estimate(row, seed_of(seed, "bootstrap", name, metric))) for metric, row in values.items()}
        for name, values in benchmarks.items()
    }
    made: JsonDict = {"benchmarks": found}
    if len(benchmarks) > 1:
        shared = [metric for metric in next(iter(benchmarks.values())) if all(metric in v for v in benchmarks.values())]
        made["mean"] = {
            metric: asdict(mean_of([v[metric] for v in benchmarks.values()], seed_of(seed, "bootstrap", metric)))
            for metric in shared
        }
    return made


def table(made: JsonDict) -> Table:
    """A row per benchmark; shares in percent with their intervals."""
    from rich.table import Table

    rows = {**made["benchmarks"], **({"mean": made["mean"]} if "mean" in made else {})}
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row if metric != "problems"))
    metrics = [metric for metric in metrics if metric != "no_verdict" or any(_value(r, metric) for r in rows.values())]
    shown = Table(title=f"{made['model']}: percent, and 95 % intervals")
    shown.add_column("benchmark", no_wrap=True)
    shown.add_column("problems", justify="right")
    for metric in metrics:
        shown.add_column(metric, justify="right", no_wrap=True)
    for name, row in rows.items():
        if name == "mean":
            shown.add_section()
        shown.add_row(name, str(row.get("problems", "")), *(_cell(row, metric) for metric in metrics))
    return shown


def _value(row: JsonDict, metric: str) -> float:
    return row[metric]["value"] if metric in row else 0.0


def _cell(row: JsonDict, metric: str) -> str:
    if metric not in row:
        return "-"
    found = row[metric]
    if metric == "tokens":
        return f"{found['value']:.0f}"
    if metric in ("cut_off", "no_verdict", "unjudged"):
        return f"{100 * found['value']:.1f}"
    return f"{100 * found['value']:.1f}\n{100 * found['low']:.1f}-{100 * found['high']:.1f}"
