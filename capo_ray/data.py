"""Prompt sets: which problem is drawn at which step, and what is wrong with a data file.

Drawing is a pure function of (seed, step): each epoch is a seeded permutation of the problems, cut into steps. Leaves
out verifiers (tasks) and chat templates (an `encode` is passed in).
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
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
        self.held_out = [self._prompt(problem) for problem in held_out]

    def for_step(self, step: int) -> list[Prompt]:
        """The prompts of `step`: all different as long as there are enough problems."""
        first = step * self._per_step
        drawn = [self._problems[self._index(position)] for position in range(first, first + self._per_step)]
        return [self._prompt(problem, position) for position, problem in enumerate(drawn, start=first)]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._problems))
        return _permutation(self._seed, epoch, len(self._problems))[offset]

    def _prompt(self, problem: Problem, position: int | None = None) -> Prompt:
        """The id tells two draws of one problem apart, since a small set can come twice in one step."""
        return Prompt(
            id=problem.id if position is None else f"{problem.id}@{position}",
            question=problem.question,
            token_ids=self._encode(problem.question),
            answer=problem.answer,
            solution=problem.solution,
        )


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def load_prompts(config: Config, encode: Encode) -> Prompts:
    """Read, check and encode the problems of `config.data`. Raises DataError."""
    data = config.data
    if data.kind == "arithmetic":
        problems, held_out = _arithmetic(config)
    else:
        assert data.path is not None
        problems = list(read_jsonl(Path(data.path).expanduser(), data))
        path = data.evaluation_path
        held_out = list(read_jsonl(Path(path).expanduser(), data, limit=data.evaluation_prompts)) if path else []
    kept = _fitting(problems, encode, data.max_prompt_tokens)
    return Prompts(
        kept,
        _fitting(held_out, encode, data.max_prompt_tokens) if held_out else [],
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


def read_jsonl(path: Path, data: Data, *, limit: int | None = None) -> Iterator[Problem]:
    """The problems of a jsonl file, .gz or plain. Raises DataError at the first line that cannot be used."""
    if not path.is_file():
        raise DataError(f"data.path: there is no file {path}; pass data.path=FILE.jsonl")
    most = limit or data.limit
    count = 0
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            yield _problem(line, f"{path.name}, line {number}", data, number)
            count += 1
            if count == most:
                return
    if not count:
        raise DataError(f"data.path: {path} is empty; it must hold one JSON object a line")


def _problem(line: str, where: str, data: Data, number: int) -> Problem:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); every line must be one JSON object") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, must be an object with a field per column")
    question = _field(record, data.question_field, "question_field", where)
    answer = _field(record, data.answer_field, "answer_field", where)
    solution = _field(record, data.solution_field, "solution_field", where) if data.solution_field else ""
    if data.answer_pattern is not None:
        found = re.search(data.answer_pattern, answer)
        if found is None:
            raise DataError(f"{where}: data.answer_pattern {data.answer_pattern!r} does not match {answer[-80:]!r}")
        answer = found[1]
    return Problem(id=str(record.get("id", number)), question=question, answer=answer, solution=solution)


def _field(record: dict[str, Any], name: str, option: str, where: str) -> str:
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; there are {', '.join(sorted(record))}: set data.{option}")
    value = record[name]
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: field {name!r} is a {type(value).__name__}, must be a text or a number")
    return str(value)


def _fitting(problems: Sequence[Problem], encode: Encode, most: int) -> list[Problem]:
    """The problems whose prompt fits; the others are counted and left out."""
    lengths = [len(encode(problem.question)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= most]
    if len(kept) < len(problems):
        first = next(p for p, length in zip(problems, lengths, strict=True) if length > most)
        longest = max(lengths)
        message = (
            f"{len(problems) - len(kept)} of {len(problems)} prompts are longer than data.max_prompt_tokens {most} "
            f"(the longest has {longest} tokens; the first is {first.id!r})"
        )
        if not kept:
            raise DataError(f"{message}: none is left. Raise data.max_prompt_tokens")
        log.warning("%s: they are left out", message)
    return kept
