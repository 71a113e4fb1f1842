"""Conversations that teach the tiny models: the policy to write flawed solutions, the critic to find the flaws.

A critique holds a line per step, which says what the step states, works it out again and says whether it is right, and
then the reply that `credit.critique` renders. The order is what so small a model can learn: looked up by the number of
the step, what it states is told before the sum suggests another result, and the sum is worked out as in the facts that
it knows by heart. Its labels are noisy on purpose: some wrong steps pass, some right ones are flagged, each by a draw
of its own, so that the critic is as unsure as its lessons and votes have something to do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from capo_ray.credit import critique
from capo_ray.credit.steps import segment
from capo_ray.credit.template import shipped
from capo_ray.tasks.arithmetic.flaws import Rates, mistaken, write
from capo_ray.tasks.arithmetic.world import LARGEST, Judged, Problem, Sign, apply, judge, make_problem, signs_within

Conversation = list[dict[str, str]]

_DRILL_RATES = Rates(
    slip=0.02, recovered=0.015, cancelled=0.01, misquoted=0.06, skipped=0.08, misapplied=0.05, box=0.02
)
_DRILL_SCALES = (0.3, 1.0, 2.0, 4.0)
_LESSON_RATES = Rates(
    slip=0.1, misread=0.05, recovered=0.03, cancelled=0.03, misquoted=0.08, skipped=0.05, misapplied=0.06, box=0.05
)
_LESSON_SCALES = (0.3, 1.0, 1.0, 2.0)
"""The critic meets solutions with few and with many mistakes: the policy changes while it is trained."""
_DRILL_SHARE = 0.6
"""Share of the critic's drills that are lists of unrelated steps to check."""
_FACTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    missed: float = 0.05
    """Share of wrong steps that a lesson calls right."""
    alarm: float = 0.03
    """Share of right steps that a lesson calls wrong."""

    def calls_wrong(self, right: bool, rng: random.Random) -> bool:
        return rng.random() < (self.alarm if right else 1 - self.missed)


def policy_prompt(question: str) -> Conversation:
    return [{"role": "user", "content": question}]


def critic_prompt(problem: Problem, response: str) -> Conversation:
    """What the critic is asked about `response`, as the pipeline asks it."""
    steps = [response[piece.start : piece.shown_end] for piece in segment(response)]
    reference = critique.Reference("solution", problem.solution)
    return list(shipped("brief").messages(problem.question, reference, steps))


def facts(seed: int, count: int) -> Iterator[Conversation]:
    """Right steps that have nothing to do with one another: sums and differences to learn by heart."""
    for index in range(count):
        rng = random.Random(f"facts {seed} {index}")
        drawn = [_draw_step(rng) for _ in range(_FACTS)]
        text = "\n\n".join(f"{start} {sign} {operand} = {due}." for start, sign, operand, due in drawn)
        yield [{"role": "user", "content": "Say what you know."}, _says(text)]


def policy_drills(seed: int, count: int) -> Iterator[Conversation]:
    """Many numbers misquoted, and by far: they teach that a result follows from the question, not from what the step
    has written."""
    rates = Rates(slip=0.0, recovered=0.0, cancelled=0.0, misquoted=0.4, skipped=0.1, box=0.0)
    return policy_lessons(seed, count, rates, reach=8)


def policy_lessons(seed: int, count: int, rates: Rates | None = None, reach: int = 1) -> Iterator[Conversation]:
    for index in range(count):
        problem = make_problem(seed, index)
        rng = random.Random(f"policy {seed} {index}")
        yield [*policy_prompt(problem.question), _says(write(problem, rng, rates or Rates(), reach))]


def critic_drills(seed: int, count: int) -> Iterator[Conversation]:
    """Critiques without noise, and often lists of unrelated steps: they teach to compare numbers."""
    for index in range(count):
        rng = random.Random(f"drill {seed} {index}")
        if rng.random() < _DRILL_SHARE:
            yield drill(rng)
        else:
            rates = _DRILL_RATES.scaled(rng.choice(_DRILL_SCALES))
            yield critique_lesson(make_problem(seed, index), rng, rates, Noise(missed=0.0, alarm=0.0))


def critic_lessons(seed: int, count: int) -> Iterator[Conversation]:
    for index in range(count):
        rng = random.Random(f"critic {seed} {index}")
        rates = _LESSON_RATES.scaled(rng.choice(_LESSON_SCALES))
        yield critique_lesson(make_problem(seed, index), rng, rates, Noise())


def critique_lesson(problem: Problem, rng: random.Random, rates: Rates, noise: Noise) -> Conversation:
    response = write(problem, rng, rates)
    return [*critic_prompt(problem, response), _says(reply(judge(problem, response), rng, noise))]


def reply(steps: list[Judged], rng: random.Random, noise: Noise) -> str:
    called_wrong = [noise.calls_wrong(step.right, rng) for step in steps]
    wrong_steps = [index for index, wrong in enumerate(called_wrong) if wrong]
    return "\n".join([*map(_line, range(len(steps)), steps, called_wrong), critique.render_reply(wrong_steps)])


def drill(rng: random.Random) -> Conversation:
    """Unrelated steps, most of them wrong and some of them far off, and what should be said of each."""
    steps, lines = [], []
    for index in range(rng.randint(4, 8)):
        start, sign, operand, due = _draw_step(rng)
        said = rng.choice((due, mistaken(due, rng), rng.randint(0, LARGEST)))
        steps.append(f"{start} {sign} {operand} = {said}.")
        judged = Judged(right=said == due, said=said, due=due, sum=f"{start} {sign} {operand}")
        lines.append(_line(index, judged, not judged.right))
    return [
        {"role": "system", "content": "Check each step."},
        {"role": "user", "content": critique.wrap(steps)},
        _says("\n".join(lines)),
    ]


def _draw_step(rng: random.Random) -> tuple[int, Sign, int, int]:
    start, operand = rng.randint(0, LARGEST), rng.randint(1, 9)
    sign = rng.choice(signs_within(start, operand))
    return start, sign, operand, apply(start, (sign, operand))


def _line(index: int, step: Judged, called_wrong: bool) -> str:
    due = f"{step.sum} = {step.due}" if step.sum else str(step.due)
    numbers = "?" if step.said is None else f"{step.said} / {due}"
    return f"{index}: {numbers} {'wrong' if called_wrong else 'right'}"


def _says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
