"""The critics of the tiny world that need no model."""

import asyncio
import random

import pytest

from capo_ray.credit.critique import Reference
from capo_ray.credit.reply import parse
from capo_ray.credit.steps import segment
from capo_ray.credit.template import shipped
from capo_ray.tasks.arithmetic.critics import Critic, placebo, truth
from capo_ray.tasks.arithmetic.flaws import Rates, write
from capo_ray.tasks.arithmetic.world import Problem, check, problems
from capo_ray.types import Sampling

RATES = Rates(slip=0.1, recovered=0.1, cancelled=0.1, misquoted=0.2)


def flags(
    critic: Critic, problem: Problem, response: str, *, n: int = 1, seed: int = 7, template: str = "brief"
) -> list[tuple[int, ...]]:
    steps = [response[piece.start : piece.shown_end] for piece in segment(response)]
    asked = shipped(template).messages(problem.question, Reference("solution", problem.solution), steps)
    replies = asyncio.run(critic.complete(asked, Sampling(max_tokens=64), n=n, seed=seed))
    critiques = [parse(reply.text, len(steps)) for reply in replies.completions]
    assert all(critique.outcome == "ok" for critique in critiques)
    return [critique.wrong_steps for critique in critiques]


@pytest.mark.parametrize("template", ["brief", "paper"])
def test_the_truth_flags_what_is_wrong_and_nothing_else(template: str) -> None:
    rng = random.Random(0)
    for problem in problems(0, 50):
        response = write(problem, rng, RATES)
        wrong = tuple(index for index, right in enumerate(check(problem, response).steps_right) if not right)
        assert flags(truth(), problem, response, n=2, template=template) == [wrong, wrong]


def test_the_placebo_flags_its_share_and_a_critique_is_the_same_in_any_round() -> None:
    found = []
    for number, problem in enumerate(problems(0, 200)):
        whole = flags(placebo(0.3), problem, problem.solution, n=4, seed=100 * number)
        assert flags(placebo(0.3), problem, problem.solution, n=2, seed=100 * number + 2) == whole[2:]
        found += [len(wrong) / len(segment(problem.solution)) for wrong in whole]
    assert sum(found) / len(found) == pytest.approx(0.3, abs=0.03)
