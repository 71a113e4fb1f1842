"""Is a response right, which of its steps are, and which wrong answers are the same answer?

Mathematics goes to the same verifier as in training, choices are compared by letter, the tiny world has a checker of
its own. Leaves out counting (report, records.estimates).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from capo_ray.evaluate.choices import verify_choice
from capo_ray.evaluate.response import Response
from capo_ray.evaluate.suites import Question, Suite
from capo_ray.tasks.math import plain, verify_integer
from capo_ray.tasks.verify import Verifier
from capo_ray.types import Verification

Grader = Callable[[str, Question, str], Awaitable[Verification]]
"""(benchmark, question, response) -> grade."""
Equal = Callable[[str, str], Awaitable[bool]]
"""Whether two answers are the same."""


def grader(suite: Suite, verifier: Verifier) -> Grader:
    async def grade(benchmark: str, question: Question, response: str) -> Verification:
        kind = suite[benchmark].answer
        if kind == "arithmetic":
            return verify_integer(question.problem.answer, response)
        if kind == "choice":
            return verify_choice(question.problem.answer, response, question.options)
        return await verifier.verify(question.problem.answer, response)

    return grade


def steps_right(question: str, response: str) -> tuple[bool, ...]:
    """Of a problem of the tiny world: whether each step is right."""
    from capo_ray.tasks.arithmetic.world import check

    return check(question, response).steps_right


async def votes(samples: Sequence[Response], equal: Equal | None) -> list[int | None]:
    """Per sample of one problem a number for its answer, the same for equal answers: 0 for what is right, None where
    there is none. Answers that are spelled alike are equal; others are compared with `equal`, and only where wrong ones
    could outvote the right one."""
    wrong = [sample for sample in samples if sample.answer == "wrong" and sample.extracted is not None]
    contested = len(wrong) >= sum(sample.answer == "correct" for sample in samples) > 0
    spellings: list[tuple[str, str]] = []  # (as it was first written, its plain spelling), by number from 1

    async def number_of(answer: str) -> int:
        for number, (_, spelling) in enumerate(spellings, start=1):
            if spelling == plain(answer):
                return number
        for number, (written, _) in enumerate(spellings, start=1):
            if contested and equal and await equal(written, answer):
                return number
        spellings.append((answer, plain(answer)))
        return len(spellings)

    found: list[int | None] = []
    for sample in samples:
        if sample.answer == "correct":
            found.append(0)
        elif sample.answer == "wrong" and sample.extracted is not None:
            found.append(await number_of(sample.extracted))
        else:
            found.append(None)
    return found


def same_answer(verifier: Verifier) -> Equal:
    async def equal(one: str, other: str) -> bool:
        return (await verifier.verify(one, f"\\boxed{{{other}}}")).answer == "correct"

    return equal
