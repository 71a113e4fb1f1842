"""Engines that take a set time and compute nothing, behind the protocols of the real ones, for `pipeline.py`.

What they say is made up and of a real size: responses and critiques of lognormal length, whose lengths are functions of
the seeds that they are asked with, so that whoever knows the seeds knows how long everything takes: `drained` and
`in_flight` say how long a run of nothing else would. Leaves out the run around them and what is measured (pipeline).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capo_ray.engines.protocols import Completion, Message, Replies, UpdateBatch, WeightReceipt
from capo_ray.records.busy import Busy
from capo_ray.seeds import seed_of
from capo_ray.types import Metrics, Prompt, Rollout, Sampling, Update

SPREAD, CRITIQUE_SPREAD = 0.6, 0.25
"""Of the logarithm of lengths."""
CHARACTERS = 4
"""Of a token."""
STEP_TOKENS = 60
"""Tokens of a reasoning step."""
_WORDS = "so we add the two and find that this part is what was asked for, since both sides agree with it now "


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much is said and how long it takes."""

    response: int
    """Median tokens."""
    critique: int
    """Median tokens."""
    token_s: float
    """Seconds for a token of a response or critique, however many are on their way."""
    update_s: float
    sync_s: float

    def response_tokens(self, seed: int, most: int) -> int:
        return _length(seed, self.response, SPREAD, most)

    def critique_tokens(self, seed: int, most: int) -> int:
        return _length(seed, self.critique, CRITIQUE_SPREAD, most)


def _length(seed: int, middle: int, spread: float, most: int) -> int:
    return max(8, min(most, round(middle * random.Random(seed).lognormvariate(0, spread))))


class TimedRollout:
    """See protocols.RolloutEngine. Its one actor may stand for several engines: none waits for another."""

    dead = False

    def __init__(self, pace: Pace, name: str) -> None:
        self.name = name
        self.version = -1
        self._pace = pace
        self._tokens = 0
        self._busy = Busy()

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        tasks = [asyncio.create_task(self._one(prompt, sampling, index, seed)) for index, seed in seeds.items()]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, prompt: Prompt, sampling: Sampling, index: int, seed: int) -> Rollout:
        version, count = self.version, self._pace.response_tokens(seed, sampling.max_tokens)
        with self._busy:
            await asyncio.sleep(count * self._pace.token_s)
        self._tokens += count
        rng = random.Random(seed)
        answer = prompt.answer if rng.random() < 0.5 else "0"
        text = response_text(count, answer)
        return Rollout(
            prompt_id=prompt.id,
            index=index,
            text=text,
            finish="stop",
            token_ids=tuple(rng.choices(range(150_000), k=count)),
            logprobs=tuple([-rng.random() for _ in range(count)]),
            char_ends=(*range(CHARACTERS, CHARACTERS * count, CHARACTERS), len(text)),
            versions=(version,),
        )

    async def take_weights(self, stage: str, given: Mapping[str, Any]) -> WeightReceipt:
        await asyncio.sleep(self._pace.sync_s)
        self.version = given["version"]
        return WeightReceipt(engine=self.name, version=self.version, checksum="none")

    def metrics(self) -> Metrics:
        seconds = {"busy_s": self._busy.seconds}
        return {"generated_tokens": float(self._tokens), "prompt_tokens": 0.0, "cached_tokens": 0.0, **seconds}

    async def pulse(self) -> None: ...

    def close(self) -> None: ...


def response_text(tokens: int, answer: str) -> str:
    """Reasoning steps and, last, the answer in a box; CHARACTERS to a token."""
    step = (_WORDS * math.ceil(CHARACTERS * STEP_TOKENS / len(_WORDS)))[: CHARACTERS * STEP_TOKENS - 2]
    end = f"\\boxed{{{answer}}}"
    whole = (f"{step}\n\n" * math.ceil(tokens / STEP_TOKENS))[: max(0, CHARACTERS * tokens - len(end))]
    return whole + end


class TimedCritic:
    """See protocols.CriticEngine. Flags one of the first steps in one critique of three."""

    dead = False

    def __init__(self, pace: Pace, name: str) -> None:
        self.name = name
        self._pace = pace
        self._tokens = 0
        self._busy = Busy()

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        counts = [self._pace.critique_tokens(seed + i, sampling.max_tokens) for i in range(n)]
        with self._busy:
            await asyncio.sleep(max(counts) * self._pace.token_s)
        self._tokens += sum(counts)
        said = tuple(self._say(seed + i, count) for i, count in enumerate(counts))
        prompt = sum(len(message["content"]) for message in messages) // CHARACTERS
        return Replies(completions=said, prompt_tokens=prompt, cached_tokens=0)

    def _say(self, seed: int, count: int) -> Completion:
        flagged = "0" if random.Random(seed).random() < 1 / 3 else ""
        end = f"{'No' if flagged else 'Yes'}\n<incorrect_steps>{flagged}</incorrect_steps>"
        prose = (_WORDS * math.ceil(CHARACTERS * count / len(_WORDS)))[: max(0, CHARACTERS * count - len(end))]
        return Completion(text=prose + end, truncated=False, num_tokens=count)

    def metrics(self) -> Metrics:
        seconds = {"busy_s": self._busy.seconds}
        return {"generated_tokens": float(self._tokens), "prompt_tokens": 0.0, "cached_tokens": 0.0, **seconds}

    async def pulse(self) -> None: ...

    def close(self) -> None: ...


class TimedTrainer:
    """See protocols.TrainEngine."""

    def __init__(self, pace: Pace) -> None:
        self.step = 0
        self._pace = pace

    def update(self, batch: UpdateBatch) -> Update:
        time.sleep(self._pace.update_s)
        self.step += len(batch.micro_batches)
        return Update(metrics={"nonfinite_steps": 0.0}, version=self.step)

    def weights(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def close(self) -> None: ...


class TimedSender:
    """The trainer's end of a sync, which moves no weights."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers

    def send(self, weights: Iterator[tuple[str, Any]], version: int) -> str:
        import ray

        ray.get([worker.take_weights.remote("finish", {"version": version}) for worker in self._workers], timeout=60)
        return "none"

    def close(self) -> None: ...


def make_sender(handles: Sequence[Any], *, engine: Any, rank: int, host: str) -> TimedSender:
    return TimedSender(handles if rank == 0 else ())


def make_trainer(pace: Pace, *, rank: int, host: str, port: int) -> TimedTrainer:
    return TimedTrainer(pace)


def prompts_of(count: int, step: int) -> list[Prompt]:
    """Of the size of MATH's: 120 tokens, a solution of 200. Half of the answers need a verifying process."""
    made = []
    for number in range(count):
        rng = random.Random(seed_of(step, number))
        half = rng.randrange(3, 99)
        answer = f"\\frac{{{half}}}{{101}}" if number % 2 else str(half)
        made.append(
            Prompt(
                id=f"{step}-{number}",
                question=response_text(100, str(number)),
                token_ids=tuple(rng.choices(range(150_000), k=120)),
                answer=answer,
                solution=response_text(200, answer),
            )
        )
    return made


@dataclass(frozen=True, slots=True)
class Work:
    """What a step asks of the engines."""

    sampled_s: float
    """Until its last response is there."""
    judged_s: float
    """Until the last of them is judged too, each from the moment that it was there."""
    mean_s: float
    """Of a response."""


def drained(works: Sequence[Work], staleness: int, update_s: float, sync_s: float) -> list[float]:
    """When each step would be done if nothing but engines took time, and a sync waited for the batches in flight."""
    begun, done, now = dict[int, float](), [], sync_s
    for step, work in enumerate(works):
        for ahead in range(step, min(step + staleness + 1, len(works))):
            begun.setdefault(ahead, now)
        trained = max(now, begun[step] + work.judged_s) + update_s
        sampled = [begun[ahead] + works[ahead].sampled_s for ahead in begun if ahead > step]
        now = max([trained, *sampled]) + sync_s
        done.append(now)
    return done


def in_flight(works: Sequence[Work], update_s: float, sync_s: float) -> float:
    """Seconds of a step where no engine ever waits."""
    return max(update_s + sync_s, sum(work.mean_s for work in works) / len(works))
