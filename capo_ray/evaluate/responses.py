"""Every response of an evaluation: which are left to ask for, and each graded and written down as it comes.

Leaves out what a line is (response), what the responses are worth (report) and what critics say of them
(critic_bench.replies).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from capo_ray.evaluate.grading import Grader
from capo_ray.evaluate.response import Key, Mode, Response
from capo_ray.evaluate.suites import Question
from capo_ray.files.lines import appending
from capo_ray.models.chat import Encode
from capo_ray.seeds import seed_of
from capo_ray.types import Prompt, Rollout, Sampling


class Sampler(Protocol):
    """The part of a rollout engine that answers; see protocols.RolloutEngine."""

    def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A problem that is put to the model: `indices` by mode are the responses that are not there yet."""

    benchmark: str
    question: Question
    prompt: Prompt
    indices: dict[Mode, list[int]]


def tasks_of(
    asked: Iterable[tuple[str, Question]], encode: Encode, wanted: dict[Mode, int], done: Iterable[Key]
) -> list[Task]:
    """What is left to ask; `wanted` is how many responses each problem gets, by mode."""
    there = set(done)
    tasks = []
    for benchmark, question in asked:
        problem = question.problem
        left = {
            mode: [index for index in range(number) if (benchmark, problem.id, mode, index) not in there]
            for mode, number in wanted.items()
        }
        prompt = Prompt(
            id=f"{benchmark}/{problem.id}",
            question=problem.question,
            token_ids=encode(problem.question, problem.system),
            answer=problem.answer,
            solution=problem.solution,
        )
        tasks.append(Task(benchmark=benchmark, question=question, prompt=prompt, indices=left))
    return tasks


async def ask(
    tasks: Sequence[Task],
    engine: Sampler,
    sampling: dict[Mode, Sampling],
    grade: Grader,
    path: Path,
    *,
    seed: int,
    at_once: int,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Have the tasks answered, `at_once` responses at a time, and append each response to `path` as it comes."""
    free = asyncio.Semaphore(at_once)

    async def one(task: Task, mode: Mode, index: int, append: Callable[[str], None]) -> None:
        problem = task.question.problem
        async with free:
            seeds = {index: seed_of(seed, "evaluation", task.benchmark, problem.id, mode, index)}
            (rollout,) = [found async for found in engine.generate(task.prompt, sampling[mode], seeds)]
        found = await grade(task.benchmark, task.question, rollout.whole)
        response = Response(
            benchmark=task.benchmark,
            id=problem.id,
            mode=mode,
            index=index,
            question=problem.question,
            gold=problem.answer,
            response=rollout.text,
            finish=rollout.finish,
            num_tokens=len(rollout.token_ids),
            answer=found.answer,
            extracted=found.extracted,
            reason=found.reason,
        )
        append(json.dumps(asdict(response), ensure_ascii=False) + "\n")
        progress()

    with appending(path) as append:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                for mode, indices in task.indices.items():
                    for index in indices:
                        group.create_task(one(task, mode, index, append))
