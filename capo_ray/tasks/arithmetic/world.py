"""The tiny world: problems in integer arithmetic, solved one operation a step, whose every step has a computable truth.

A problem reads "Start with 17. Add 5, subtract 8, then add 9." and its solution

    17 + 5 = 22.

    22 - 8 = 14.

    14 + 9 = 23.

    The answer is \\boxed{23}.

`check` judges any response to such a question, step by step, by three rules:

* A step is right if its arithmetic holds, if its operation is the next that the question asks for (or a later one:
  leaving operations out is not the mistake of the step that follows), and if it starts from the value just stated or
  from the true one at that point. So a step that builds on an earlier wrong result is right, and so is one that
  recovers.
* The closing step is right if it boxes the value just stated, or the true one once the last operation was written: a
  box without the steps that lead there is a wrong step. Nothing comes after it.
* The answer is right if the box holds the true value, however it was reached.

Every problem belongs to one of two splits, by a hash of its content, so that nothing held out can be met in training.
Leaves out: solutions with mistakes (see `flaws`) and models (see `models`).
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capo_ray.credit.steps import segment
from capo_ray.records.tally import Truth
from capo_ray.types import Verification

Split = Literal["train", "held_out"]
Sign = Literal["+", "-"]
Operation = tuple[Sign, int]


LARGEST = 99
"""Every value on the way of a true solution lies in 0..LARGEST."""
_HELD_OUT_SHARE = 10
"""One problem in so many is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """How hard problems are. The shipped models know the default."""

    operations: tuple[int, int] = (2, 4)
    """Fewest and most operations of a problem."""
    largest_operand: int = 9

    def __post_init__(self) -> None:
        fewest, most = self.operations
        if not 1 <= fewest <= most:
            raise ValueError(f"`operations` must be (fewest, most) with 1 <= fewest <= most, got {self.operations}")
        if not 1 <= self.largest_operand <= LARGEST // 2:
            raise ValueError(f"`largest_operand` must be in 1..{LARGEST // 2}, got {self.largest_operand}")


@dataclass(frozen=True, slots=True)
class Problem:
    start: int
    operations: tuple[Operation, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The start and the true value after each operation: one more than there are operations."""
        values = [self.start]
        for operation in self.operations:
            values.append(apply(values[-1], operation))
        return tuple(values)

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def question(self) -> str:
        *first, last = (f"{'add' if sign == '+' else 'subtract'} {operand}" for sign, operand in self.operations)
        asked = f"{', '.join(first)}, then {last}" if first else last
        return f"Start with {self.start}. {asked[0].upper()}{asked[1:]}."

    @property
    def solution(self) -> str:
        values = self.values
        return render(list(zip(values, self.operations, values[1:], strict=False)), values[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The truth about one step."""

    right: bool
    said: int | None = None
    """The number that it states; None if it cannot be read."""
    due: int | None = None
    """The number that it should have stated."""
    sum: str = ""
    """The sum or difference whose result is `due`, such as "17 + 5": the one that the step writes, or the one that was
    asked for where the step's own holds. Empty for a box, and where nothing can be read."""
    closing: bool = False


def apply(value: int, operation: Operation) -> int:
    sign, operand = operation
    return value + operand if sign == "+" else value - operand


def render(lines: list[tuple[int, Operation, int]], boxed: int) -> str:
    """The text of a solution: each line is (start, operation as written, stated result)."""
    steps = [f"{start} {sign} {operand} = {result}." for start, (sign, operand), result in lines]
    return "\n\n".join([*steps, f"The answer is \\boxed{{{boxed}}}."])


def make_problem(seed: int, index: int, difficulty: Difficulty | None = None, split: Split = "train") -> Problem:
    """Problem `index` of an endless list; a pure function of its arguments."""
    difficulty = difficulty or Difficulty()
    rng = random.Random(f"{split} {seed} {index}")
    while True:
        problem = _draw(rng, difficulty)
        if split_of(problem) == split:
            return problem


def problems(
    seed: int, count: int, difficulty: Difficulty | None = None, split: Split = "train", first: int = 0
) -> list[Problem]:
    """Problems `first` to `first + count` of the list that `make_problem` defines."""
    return [make_problem(seed, index, difficulty, split) for index in range(first, first + count)]


def split_of(problem: Problem) -> Split:
    """By content, so that the splits are disjoint whatever the seeds."""
    return "held_out" if zlib.crc32(problem.question.encode()) % _HELD_OUT_SHARE == 0 else "train"


def _draw(rng: random.Random, difficulty: Difficulty) -> Problem:
    start = value = rng.randint(0, LARGEST)
    operations: list[Operation] = []
    for _ in range(rng.randint(*difficulty.operations)):
        operand = rng.randint(1, difficulty.largest_operand)
        operations.append((rng.choice(signs_within(value, operand)), operand))
        value = apply(value, operations[-1])
    return Problem(start, tuple(operations))


def signs_within(value: int, operand: int) -> list[Sign]:
    """What can be done to `value` with `operand` without leaving 0..LARGEST."""
    signs: tuple[Sign, ...] = ("+", "-")
    return [sign for sign in signs if 0 <= apply(value, (sign, operand)) <= LARGEST]


_QUESTION = re.compile(r"Start with (\d+)\. ((?:add|subtract) \d+(?:, (?:then )?(?:add|subtract) \d+)*)\.", re.I)
_ASKED = re.compile(r"(add|subtract) (\d+)", re.I)
_NUMBER = r"(0|-?[1-9][0-9]{0,8})"
_STEP = re.compile(rf"{_NUMBER} ([+-]) {_NUMBER} = {_NUMBER}\.?")
_CLOSING = re.compile(rf"The answer is \\boxed\{{{_NUMBER}\}}\.?")


def parse(question: str) -> Problem:
    """The problem that a question states."""
    match = _QUESTION.fullmatch(question.strip())
    if match is None:
        raise ValueError(f"not a question of the arithmetic world: {question!r}")
    return _problem(match)


def find_problem(text: str) -> Problem:
    """The problem of the first question in `text`."""
    match = _QUESTION.search(text)
    if match is None:
        raise ValueError(f"no question of the arithmetic world in {text[:200]!r}")
    return _problem(match)


def _problem(match: re.Match[str]) -> Problem:
    asked = _ASKED.findall(match[2])
    return Problem(int(match[1]), tuple(("+" if verb.lower() == "add" else "-", int(n)) for verb, n in asked))


def judge(problem: Problem | str, response: str) -> list[Judged]:
    """Judge the steps of a response to a problem, or to the text of its question. Rules: see the module."""
    problem = parse(problem) if isinstance(problem, str) else problem
    values, position, stated, closed = problem.values, 0, problem.start, False
    judged: list[Judged] = []
    for piece in segment(response):
        text = response[piece.start : piece.shown_end].strip()
        if closing := _CLOSING.fullmatch(text):
            said = int(closing[1])
            follows = said == stated and bool(judged)
            arrives = said == values[-1] and position == len(problem.operations)
            right = not closed and (follows or arrives)
            judged.append(Judged(right=right, said=said, due=said if right else stated, closing=True))
            closed = True
        elif step := _STEP.fullmatch(text):
            start, said = int(step[1]), int(step[4])
            written: Operation = ("+" if step[2] == "+" else "-", int(step[3]))
            asked = _find(problem.operations, written, position)
            base = (start, written)
            if asked is None or start not in (stated, values[asked]):
                wanted = next((ahead for ahead in problem.operations[position:] if ahead[0] == written[0]), None)
                base = (stated, wanted) if wanted and apply(*base) == said else base
                right = False
            else:
                right = apply(*base) == said and not closed
            judged.append(Judged(right=right, said=said, due=apply(*base), sum=f"{base[0]} {base[1][0]} {base[1][1]}"))
            stated = said
            position = position if asked is None else asked + 1
        else:
            judged.append(Judged(right=False))
    return judged


def _find(operations: tuple[Operation, ...], operation: Operation, first: int) -> int | None:
    return next((index for index in range(first, len(operations)) if operations[index] == operation), None)


def check(problem: Problem | str, response: str) -> Truth:
    """The truth about a response to a problem, or to the text of its question. Rules: see the module."""
    problem = parse(problem) if isinstance(problem, str) else problem
    steps = judge(problem, response)
    return Truth(_boxed(steps) == problem.values[-1], tuple(step.right for step in steps))


def _boxed(steps: Sequence[Judged]) -> int | None:
    return next((step.said for step in reversed(steps) if step.closing), None)


def verify_answer(question: str, response: str) -> Verification:
    """The truth about a response's final answer alone."""
    problem = parse(question)
    boxed, wanted = _boxed(judge(problem, response)), problem.values[-1]
    if boxed is None:
        return Verification(answer="wrong", reason="no step closes with \\boxed{NUMBER}")
    if boxed != wanted:
        return Verification(answer="wrong", extracted=str(boxed), reason=f"{boxed} is not {wanted}")
    return Verification(answer="correct", extracted=str(boxed))
