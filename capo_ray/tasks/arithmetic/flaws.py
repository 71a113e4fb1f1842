"""Solutions with mistakes, in known shares: what the tiny policy learns to write and the tiny critic to judge.

The mistakes are of kinds that tell outcome from process. `slip`, `misread`, `misapplied` and `box` spoil both;
`recovered`, `cancelled` and `misquoted` reach the right answer by a wrong step, which no verifier of answers can see;
`skipped` fails although every step that is there is right. Nothing here says which steps are wrong: `world.check` does,
for any text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Literal

from capo_ray.tasks.arithmetic.world import LARGEST, Operation, Problem, apply, render

Flaw = Literal["slip", "misread", "recovered", "cancelled", "misquoted", "skipped", "misapplied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Probability of each mistake at each operation, and of a wrong box at the end."""

    slip: float = 0.0
    """A wrong result, carried on."""
    misread: float = 0.0
    """A start that is not the value just stated, carried on."""
    recovered: float = 0.01
    """A wrong result; what follows goes on from the true value."""
    cancelled: float = 0.01
    """A wrong result; the next step goes on from it and states the true value again, wrong in its turn."""
    misquoted: float = 0.17
    """A wrong operand beside the right result."""
    skipped: float = 0.14
    """No step for this operation."""
    misapplied: float = 0.0
    """A wrong operand and the result that it gives, carried on: a sum that holds and was not asked for."""
    box: float = 0.02

    def draw(self, rng: random.Random) -> Flaw | None:
        """The mistake made at one operation, if any."""
        point = rng.random()
        for flaw in ("slip", "misread", "recovered", "cancelled", "misquoted", "skipped", "misapplied"):
            point -= getattr(self, flaw)
            if point < 0:
                return flaw
        return None

    def scaled(self, factor: float) -> Rates:
        return Rates(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


def write(problem: Problem, rng: random.Random, rates: Rates, reach: int = 1) -> str:
    """A solution with mistakes at `rates`; a wrong operand is at most `reach` away from the right one."""
    while True:
        lines, boxed = _attempt(problem, rng, rates, reach)
        if all(0 <= number <= LARGEST for start, _, result in lines for number in (start, result)):
            return render(lines, boxed)


def _attempt(
    problem: Problem, rng: random.Random, rates: Rates, reach: int
) -> tuple[list[tuple[int, Operation, int]], int]:
    lines: list[tuple[int, Operation, int]] = []
    thought = stated = problem.start
    """`thought` is what the writer takes for the value so far, `stated` what the next step starts from."""
    cancelling = False
    for operation in problem.operations:
        flaw = None if cancelling else rates.draw(rng)
        if flaw == "skipped":
            continue
        cancelling = flaw == "cancelled"
        if flaw == "misread":
            thought = stated = mistaken(stated, rng)
        done = (operation[0], _other(operation[1], rng, reach)) if flaw == "misapplied" else operation
        thought = result = apply(thought, done)
        if flaw in ("slip", "recovered", "cancelled"):
            result = mistaken(thought, rng)
        if flaw == "slip":
            thought = result
        written = (operation[0], _other(operation[1], rng, reach)) if flaw == "misquoted" else done
        lines.append((stated, written, result))
        stated = result if cancelling else thought
    return lines, mistaken(thought, rng) if rng.random() < rates.box else thought


def mistaken(value: int, rng: random.Random) -> int:
    """A number that is near `value` and is not it."""
    distances = (-1, 1, -1, 1, -1, 1, -2, 2, -10, 10)
    return rng.choice([value + d for d in distances if 0 <= value + d <= LARGEST] or [value])


def _other(operand: int, rng: random.Random, reach: int) -> int:
    return rng.choice([n for n in range(max(1, operand - reach), operand + reach + 1) if n != operand])
