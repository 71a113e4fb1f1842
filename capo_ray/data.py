"""Prompt sets: which problem is drawn at which step, and what is wrong with a data file.

Drawing is a pure function of (seed, step, attempt): each epoch is a seeded permutation of the problems, cut into steps.
Held-out problems are never trained on. Leaves out verifiers (tasks) and chat templates (an `encode` is passed in).
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from capo_ray.config import Config, Data
from capo_ray.types import Prompt

log = logging.getLogger(__name__)

Encode = Callable[[str], tuple[int, ...]]
TRAIN_PROBLEMS = 20_000
"""Problems of the arithmetic world that a run draws from."""


class DataError(ValueError):
    """A data file cannot be used; the message names the file, the line and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    id: str
    question: str
    answer: str
    solution: str


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
        """The prompts of `step`: all different as long as there are enough problems. A later `attempt` at the same
        step draws others."""
        size = len(self._problems)
        prompts = []
        for position in range(step * self._per_step, (step + 1) * self._per_step):
            epoch, offset = divmod(position, size)
            problem = self._problems[_permutation(self._seed, epoch, attempt, size)[offset]]
            # A small set can come twice in one step, so the id tells two draws of one problem apart.
            prompts.append(self._prompt(problem, f"{problem.id}@{position}" + (f".{attempt}" if attempt else "")))
        return prompts

    def _prompt(self, problem: Problem, name: str) -> Prompt:
        return Prompt(
            id=name,
            question=problem.question,
            token_ids=self._encode(problem.question),
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
    problems, held_out = _arithmetic(config) if data.kind == "arithmetic" else _from_files(data)
    return Prompts(
        _fitting(problems, encode, data.max_prompt_tokens, "prompts"),
        _fitting(held_out, encode, data.max_prompt_tokens, "held-out prompts") if held_out else [],
        encode,
        seed=config.seed,
        per_step=config.prompts_per_step,
    )


def _arithmetic(config: Config) -> tuple[list[Problem], list[Problem]]:
    from capo_ray.tasks.arithmetic.world import Difficulty, problems

    difficulty = Difficulty(operations=config.data.operations)
    train = problems(config.seed, config.data.limit or TRAIN_PROBLEMS, difficulty)
    held_out = problems(0, config.data.evaluation_prompts, difficulty, split="held_out")  # the same for every seed

    def plain(kind: str, made: Sequence[Any]) -> list[Problem]:
        return [
            Problem(id=f"{kind}-{n}", question=p.question, answer=p.answer, solution=p.solution)
            for n, p in enumerate(made)
        ]

    return plain("arithmetic", train), plain("held-out", held_out)


def _from_files(data: Data) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and held-out ones: from a file of their own, else a fixed draw from the same file."""
    assert data.path is not None
    problems = read_jsonl(Path(data.path).expanduser(), data)
    held_out: list[Problem] = []
    if data.evaluation_prompts and data.evaluation_path:
        path = Path(data.evaluation_path).expanduser()
        held_out = read_jsonl(path, data, option="evaluation_path")[: data.evaluation_prompts]
    elif data.evaluation_prompts:
        if data.evaluation_prompts >= len(problems):
            raise DataError(
                f"data.evaluation_prompts {data.evaluation_prompts} leaves none of the {len(problems)} problems of "
                f"{data.path} to train on; lower it, or name a file of held-out problems with data.evaluation_path"
            )
        order = _permutation(0, 0, 0, len(problems))  # the same for every seed
        held_out = [problems[index] for index in sorted(order[: data.evaluation_prompts])]
    return _without(problems, held_out, data)[: data.limit], held_out


def _without(problems: Sequence[Problem], held_out: Sequence[Problem], data: Data) -> list[Problem]:
    """The problems that are not held out, by their question."""
    questions = {" ".join(problem.question.split()) for problem in held_out}
    kept = [problem for problem in problems if " ".join(problem.question.split()) not in questions]
    met = len(problems) - len(kept)
    if not kept:
        raise DataError(
            f"every problem of {data.path} is held out too (data.evaluation_path); none is left to train on"
        )
    if met and data.evaluation_path:
        log.warning("%d problems of %s are held out too: they are not trained on", met, data.path)
    return kept


def read_jsonl(path: Path, data: Data, *, option: str = "path") -> list[Problem]:
    """The problems of a jsonl file, .gz or plain. Raises DataError at the first line that cannot be used."""
    if not path.is_file():
        raise DataError(f"data.{option}: there is no file {path}; pass data.{option}=FILE.jsonl")
    problems = [_problem(line, path, number, data) for number, line in _lines(path, option)]
    if not problems:
        raise DataError(f"data.{option}: {path} is empty; it must hold one JSON object a line")
    answered = [problem for problem in problems if problem.answer]
    if len(answered) < len(problems):
        first = next(problem for problem in problems if not problem.answer)
        message = (
            f"{len(problems) - len(answered)} of {len(problems)} problems have an empty answer (first: {first.id})"
        )
        if not answered:
            raise DataError(f"{message}: none is left. Set data.answer_field")
        log.warning("%s: they are left out", message)
    return answered


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}, line {number}: not UTF-8 text ({error.reason})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.{option}: {path} cannot be read after line {number}: {error}") from None


def _problem(line: str, path: Path, number: int, data: Data) -> Problem:
    where = f"{path.name}, line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); every line must be one JSON object") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, must be an object with a field per column")
    question = _field(record, data.question_field, "question_field", where)
    answer = _field(record, data.answer_field, "answer_field", where)
    solution = _field(record, data.solution_field, "solution_field", where) if data.solution_field else ""
    if data.answer_pattern is not None:
        found = _pattern(data.answer_pattern).search(answer)
        if found is None:
            raise DataError(
                f"{where}: data.answer_pattern {data.answer_pattern!r} does not match field {data.answer_field!r}, "
                f"which ends in {answer[-80:]!r}"
            )
        answer = found[1] or ""
    return Problem(id=f"{path.name}:{number}", question=question, answer=answer.strip(), solution=solution)


@lru_cache(maxsize=4)
def _pattern(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.answer_pattern {pattern!r} is not a regular expression: {error}") from None
    if not compiled.groups:
        raise DataError(f"data.answer_pattern {pattern!r} has no group; put the answer in one: (...)")
    return compiled


def _field(record: dict[str, Any], name: str, option: str, where: str) -> str:
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; there are {', '.join(sorted(record))}: set data.{option}")
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: field {name!r} is a {type(value).__name__}, must be a text or a number")
    return str(value)


def _fitting(problems: Sequence[Problem], encode: Encode, most: int, what: str) -> list[Problem]:
    """The problems whose prompt fits; the others are counted and left out."""
    lengths = [len(encode(problem.question)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= most]
    if len(kept) == len(problems):
        return kept
    first = next(problem for problem, length in zip(problems, lengths, strict=True) if length > most)
    message = (
        f"{len(problems) - len(kept)} of {len(problems)} {what} are longer than data.max_prompt_tokens {most} "
        f"(the longest has {max(lengths)} tokens; the first is {first.id})"
    )
    if not kept:
        raise DataError(f"{message}: none is left. Raise data.max_prompt_tokens")
    log.warning("%s: they are left out", message)
    return kept
