"""How the policy does on held-out problems: sampled as in training, from the same seeds always, and verified.

Leaves out when that is asked, and where it is written down (crew).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from capo_ray.cluster.arrivals import Errand
from capo_ray.records.estimates import estimate
from capo_ray.records.tally import add, rates
from capo_ray.seeds import seed_of
from capo_ray.types import Metrics, Prompt

Sample = Callable[[Prompt, Mapping[int, int], Errand], Awaitable[None]]
"""(problem, index -> seed, errand): has the responses sampled, for the problem's shard to do the errand about each."""


async def measured(
    problems: Sequence[Prompt],
    shard_of: Callable[[Prompt], Any],
    sample: Sample,
    *,
    seed: int,
    step: int,
    responses: int,
) -> Metrics:
    """Of as many `responses` to each problem, which the aggregator `shard_of` it verifies. `seed` is the run's. No
    critic judges them, so there is no reward: it would be another one than what training calls so."""
    start, errand = monotonic(), Errand(kind="check", seed=seed, step=step)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_counted(one, shard_of(one), sample, errand, responses)) for one in problems]
    counted = [one.result() for one in asked]
    tallies = [tally for problem in counted for tally in problem]
    measures = {name: value for name, value in rates(add(tallies)).items() if not name.startswith("reward/")}
    metrics = measures | over_problems(counted, seed)
    return metrics | {"responses": float(len(tallies)), "seconds": monotonic() - start}


async def _counted(problem: Prompt, shard: Any, sample: Sample, errand: Errand, responses: int) -> list[Metrics]:
    """What is counted of each response to `problem`."""
    seeds = {
        index: seed_of(errand.seed, "evaluation", problem.id, *((index,) if index else ()))
        for index in range(responses)
    }
    await sample(problem, seeds, errand)
    tallies: list[Metrics] = await shard.checked.remote(problem, errand)
    return tallies


def over_problems(problems: Sequence[Sequence[Metrics]], seed: int) -> Metrics:
    """Of [problem][response] counts: a 95 % bootstrap interval of the share of right answers, over problems, and, where
    each has several responses, the share of problems that have a right one (pass@k)."""
    counts = [add(responses) for responses in problems]
    known = [tally for tally in counts if tally.get("verified")]
    if not known:
        return {}
    found = estimate([tally["correct"] / tally["verified"] for tally in known], seed)
    made = {"outcome/accuracy_low": found.low, "outcome/accuracy_high": found.high}
    if any(len(responses) > 1 for responses in problems):
        made["outcome/pass_at_k"] = sum(tally["correct"] > 0 for tally in known) / len(known)
    return made
