"""Prompt sets: which problem is drawn at which step, and which problems are left out.

Drawing is a pure function of (seed, step, attempt): each epoch is a seeded permutation of the problems, cut into steps.
Held-out problems are never trained on. Leaves out where problems come from (read), verifiers (tasks) and chat templates
(an `encode` is passed in).
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from functools import lru_cache

from capo_ray.config.blocks import Data, Source
from capo_ray.config.run import Config
from capo_ray.data.problem import DataError, Problem, why_unanswered
from capo_ray.data.read import problems
from capo_ray.models.chat import Encode
from capo_ray.types import Prompt

log = logging.getLogger(__name__)

TRAIN_PROBLEMS = 20_000
"""Problems of the arithmetic world that a run draws from."""


class Prompts:
    """The problems of a run, as prompts."""

    def __init__(
        self, problems: Sequence[Problem], held_out: Sequence[Problem], encode: Encode, *, seed: int, per_step: int
    ) -> None:
        self._problems = problems
        self._encode = lru_cache(maxsize=4096)(encode)
        self._seed = seed
        self._per_step = per_step
        self.held_out = [self._prompt(problem, problem.id) for problem in held_out]

    def __len__(self) -> int:
        return len(self._problems)

    def for_step(self, step: int, attempt: int = 0) -> list[Prompt]:
        """The prompts of `step`, the first of which is 1: all different as long as there are enough problems. A later
        `attempt` at the same step draws others."""
        size = len(self._problems)
        prompts = []
        for position in range((step - 1) * self._per_step, step * self._per_step):
            epoch, offset = divmod(position, size)
            problem = self._problems[_permutation(self._seed, epoch, attempt, size)[offset]]
            # A small set can come twice in one step, so the id tells two draws of one problem apart.
            prompts.append(self._prompt(problem, f"{problem.id}@{position}" + (f".{attempt}" if attempt else "")))
        return prompts

    def _prompt(self, problem: Problem, name: str) -> Prompt:
        return Prompt(
            id=name,
            question=problem.question,
            token_ids=self._encode(problem.question, problem.system),
            answer=problem.answer,
            solution=problem.solution,
        )


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, attempt: int, size: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed} {epoch} {attempt}").shuffle(order)
    return order


def load_prompts(config: Config, encode: Encode) -> Prompts:
    """Read, check and encode the problems of `config.data`. Raises DataError."""
    data = config.data
    found, held_out = problems_of(config)
    return Prompts(
        _fitting(found, encode, data.max_prompt_tokens, "prompts"),
        _fitting(held_out, encode, data.max_prompt_tokens, "held-out prompts") if held_out else [],
        encode,
        seed=config.seed,
        per_step=config.prompts_per_step,
    )


def problems_of(config: Config) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, and held-out ones. Raises DataError."""
    return _arithmetic(config) if config.data.kind == "arithmetic" else _from_files(config.data)


def _arithmetic(config: Config) -> tuple[list[Problem], list[Problem]]:
    data = config.data
    train = arithmetic_problems(config.seed, data.limit or TRAIN_PROBLEMS, data)
    return train, arithmetic_problems(0, data.evaluation_prompts, data, held_out=True)  # the same for every seed


def arithmetic_problems(seed: int, count: int, data: Data, *, held_out: bool = False) -> list[Problem]:
    """Problems of the tiny world; those held out are never among the others."""
    from capo_ray.tasks.arithmetic.world import Difficulty
    from capo_ray.tasks.arithmetic.world import problems as made_up

    difficulty = Difficulty(operations=data.operations)
    made = made_up(seed, count, difficulty, split="held_out") if held_out else made_up(seed, count, difficulty)
    kind = "held-out" if held_out else "arithmetic"
    return [
        Problem(id=f"{kind}-{n}", question=p.question, answer=p.answer, solution=p.solution) for n, p in enumerate(made)
    ]


def _from_files(data: Data) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and held-out ones: from a set of their own, else a fixed draw from the same one."""
    found = usable(data)
    held_out: list[Problem] = []
    if data.evaluation_prompts and data.evaluation:
        held_out = usable(data.evaluation)[: data.evaluation_prompts]
    elif data.evaluation_prompts:
        if data.evaluation_prompts >= len(found):
            raise DataError(
                f"data.evaluation_prompts {data.evaluation_prompts} leaves none of the {len(found)} problems of "
                f"{data.path} to train on; lower it, or name held-out problems with data.evaluation.path"
            )
        order = _permutation(0, 0, 0, len(found))  # the same for every seed
        held_out = [found[index] for index in sorted(order[: data.evaluation_prompts])]
    return _without(found, held_out, data)[: data.limit], held_out


def usable(data: Source) -> list[Problem]:
    """The problems of a set that have an answer. Raises DataError at the first row that cannot be used."""
    found: list[Problem] = []
    rows_by_id: dict[str, int] = {}
    for number, problem in enumerate(problems(data), start=1):
        if isinstance(problem, DataError):
            raise problem
        if (first := rows_by_id.setdefault(problem.id, number)) != number:
            raise DataError(
                f"{data.path}: problems {first} and {number} have the id {problem.id!r}; set "
                f"{data.place}.id_field=null, or name a column whose values differ"
            )
        found.append(problem)
    asked = _left(
        [problem for problem in found if problem.question], found, "question", f"Set {data.place}.question_field"
    )
    return _left([problem for problem in asked if problem.answer], asked, "answer", why_unanswered(data))


def _left(kept: list[Problem], found: Sequence[Problem], what: str, remedy: str) -> list[Problem]:
    """What is `kept` of what was `found`; the others are counted. Raises DataError where none is left."""
    if len(kept) == len(found):
        return kept
    there = {problem.id for problem in kept}
    first = next(problem for problem in found if problem.id not in there)
    missing = len(found) - len(kept)
    message = f"{missing} of {len(found)} problems have an empty {what} (first: {first.id})"
    if not kept:
        raise DataError(f"{message}: none is left; {remedy}")
    log.warning("%s: they are left out", message)
    return kept


def same_question(question: str) -> str:
    """What is the same in two spellings of one question: white space, dollar signs, capitals and a last mark aside."""
    return re.sub(r"[\s$]+", "", question).rstrip(".?!").casefold()


def _without(found: Sequence[Problem], held_out: Sequence[Problem], data: Data) -> list[Problem]:
    """The problems that are not held out, by their question."""
    questions = {same_question(problem.question) for problem in held_out}
    kept = [problem for problem in found if same_question(problem.question) not in questions]
    met = len(found) - len(kept)
    if not kept:
        raise DataError(
            f"every problem of {data.path} is held out too (data.evaluation.path); none is left to train on"
        )
    if met and data.evaluation:
        log.warning("%d problems of %s are held out too: they are not trained on", met, data.path)
    return kept


def _fitting(found: Sequence[Problem], encode: Encode, most: int, what: str) -> list[Problem]:
    """The problems whose prompt fits; the others are counted and left out."""
    lengths = [len(encode(problem.question, problem.system)) for problem in found]
    kept = [problem for problem, length in zip(found, lengths, strict=True) if length <= most]
    if len(kept) == len(found):
        return kept
    first = next(problem for problem, length in zip(found, lengths, strict=True) if length > most)
    message = (
        f"{len(found) - len(kept)} of {len(found)} {what} are longer than data.max_prompt_tokens {most} "
        f"(the longest has {max(lengths)} tokens; the first is {first.id})"
    )
    if not kept:
        raise DataError(f"{message}: none is left. Raise data.max_prompt_tokens")
    log.warning("%s: they are left out", message)
    return kept
