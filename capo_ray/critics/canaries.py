"""Canaries: responses with known wrong steps, judged beside a run's own, to see what its critics are worth.

Which of them belong to a step is a pure function of seed and step, so a resumed run goes on with the next. They are
asked about as any response is (template, critiques, rounds, queues), with no better reference than the run's own
problems have, counted apart, and touch no reward; nothing waits for them: one that is not done when its step is written
down counts at the step that follows. Leaves out the warnings (see `records.watch`) and what flags are worth against
labels (see `credit.flags`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from capo_ray.config.run import Config
from capo_ray.credit.critique import ReferenceKind, reference_of
from capo_ray.credit.flags import FlagCounts, flags
from capo_ray.critics.labelled import Item, arithmetic, processbench
from capo_ray.critics.service import Critics, CriticsFailed
from capo_ray.data.problem import DataError
from capo_ray.records.tally import add
from capo_ray.seeds import seed_of
from capo_ray.types import FAILED_OUTCOMES, Critique, Metrics, Prompt

log = logging.getLogger(__name__)

ARITHMETIC_PROBLEMS = 1000
"""Held-out problems of the tiny world whose flawed solutions are canaries; about half of them have a wrong step."""


@dataclass(frozen=True, slots=True)
class Canary:
    item: Item
    seed: int
    """Of its critiques."""
    most: ReferenceKind = "solution"
    """The best reference that a problem of the run has; it is shown no better one."""


class CanarySet:
    """All canaries of a run: the items in a seeded order, and again in another one when they are through."""

    def __init__(self, items: Sequence[Item], *, seed: int, per_step: float) -> None:
        """`per_step` need not be whole: after s steps it is s times as many, rounded up."""
        self._items = items
        self._seed = seed
        self._per_step = per_step

    @classmethod
    def of(cls, config: Config) -> CanarySet:
        """Those of a configuration; none without `critic.canaries`. Raises DataError."""
        chosen = config.critic.canaries if config.critic else None
        if chosen is None:
            return cls((), seed=config.seed, per_step=0.0)
        items = _arithmetic(config) if chosen.source == "arithmetic" else _file(chosen.source)
        _warn_of_less(items, config)
        return cls(
            items, seed=config.seed, per_step=chosen.rate * config.prompts_per_step * config.responses_per_prompt
        )

    def for_step(self, step: int, prompts: Sequence[Prompt] = ()) -> list[Canary]:
        """Those that are judged in `step`, the first of which is 1, beside the responses to `prompts`, each with the
        kind of reference that one of them has."""
        first, end = (math.ceil(self._per_step * steps) for steps in (step - 1, step))
        kinds = [reference_of(prompt, "solution").kind for prompt in prompts] or ["solution"]
        return [self._canary(number, kinds[number % len(kinds)]) for number in range(first, end)]

    def _canary(self, number: int, most: ReferenceKind) -> Canary:
        turn, place = divmod(number, len(self._items))
        item = self._items[_order(self._seed, turn, len(self._items))[place]]
        return Canary(item, seed_of(self._seed, "canary", number), most)


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, size: int) -> list[int]:
    return sorted(range(size), key=lambda place: seed_of(seed, "canaries", turn, place))


def _arithmetic(config: Config) -> list[Item]:
    """Flawed solutions of held-out problems, labelled by the world's checker, where any step is wrong."""
    from capo_ray.tasks.arithmetic.flaws import Rates, write
    from capo_ray.tasks.arithmetic.world import Difficulty, problems

    difficulty = Difficulty(operations=config.data.operations)
    asked = problems(0, ARITHMETIC_PROBLEMS, difficulty, split="held_out")
    responses = [
        (problem.question, write(problem, random.Random(f"canary {number}"), Rates()))
        for number, problem in enumerate(asked)
    ]
    return [item for item in arithmetic(responses) if True in item.labels]


def _warn_of_less(items: Sequence[Item], config: Config) -> None:
    """What canaries lack and the run has cannot be made up."""
    assert config.critic is not None and config.critic.canaries is not None
    wanted = config.critic.reference
    usual = None in (config.data.question_field, config.data.answer_field)  # then a solution may be found
    if wanted == "solution" and config.data.kind != "arithmetic" and config.data.solution_field is None and not usual:
        wanted = "answer"
    less = sum(_rank(reference_of(item.as_prompt(), wanted).kind) < _rank(wanted) for item in items)
    if less:
        log.warning(
            "critic.canaries.source: %d of %d canaries of %s have no reference like the run's own problems (%s): what "
            "critics are worth there is worth less here. Give the records the fields `answer` and `solution`, or set "
            "critic.reference=none",
            less, len(items), config.critic.canaries.source, wanted,
        )  # fmt: skip


def _rank(kind: ReferenceKind) -> int:
    return ("none", "answer", "solution").index(kind)


def _file(source: str) -> list[Item]:
    items = processbench(Path(source).expanduser(), option="critic.canaries.source")
    if not any(True in item.labels for item in items):
        raise DataError(
            f"critic.canaries.source: no response in {source} has a wrong step (`label` is -1 in all {len(items)}), so "
            "nothing could be said of recall; name a file with wrong ones"
        )
    return items


class CanaryJudge:
    """Has canaries judged by the critics of one aggregator shard."""

    def __init__(self, critics: Critics, *, reference: ReferenceKind, vote: str, min_valid_critiques: int = 1) -> None:
        """`vote` and `min_valid_critiques` are those of the run's responses."""
        self._critics = critics.apart()
        self._reference = reference
        self._vote = vote
        self._min_valid = min_valid_critiques
        self._asked: set[asyncio.Task[Metrics]] = set()

    def begin(self, canaries: Sequence[Canary]) -> None:
        """Ask about `canaries`; returns at once."""
        self._asked.update(asyncio.create_task(self._judge(canary)) for canary in canaries)

    async def _judge(self, canary: Canary) -> Metrics:
        try:
            shown = min(self._reference, canary.most, key=_rank)
            critiques = await canary.item.judged_by(self._critics, reference=shown, seed=canary.seed)
        except CriticsFailed as error:  # whether that stops the run is for its own responses to say
            log.warning("a canary was not judged: %s", error)
            critiques = self._critics.not_asked()
        return self._count(canary.item, critiques)

    def _count(self, item: Item, critiques: Sequence[Critique]) -> Metrics:
        valid = sum(critique.outcome == "ok" for critique in critiques)
        row = flags(critiques, len(item.steps), self._vote, min_valid_critiques=self._min_valid)
        found = FlagCounts.of([(row, item.labels)])
        right = sum(label is False for label in item.labels) if row is not None else 0
        return {
            "canaries": 1.0,
            "canary_hits": float(found.hits),
            "canary_flagged": float(found.flagged),
            "canary_wrong": float(found.wrong),
            "canary_false_flags": float(found.flagged - found.hits),
            "canary_right": float(right),
            "canary_flagged_steps": float(sum(row or ())),
            "canary_judged_steps": float(len(row or ())),
            "canary_valid_critiques": float(valid),
            "canary_finished_critiques": float(valid + sum(c.outcome in FAILED_OUTCOMES for c in critiques)),
            "canary_tokens": float(sum(critique.num_tokens for critique in critiques)),
        }

    def take(self) -> Metrics:
        """Sums over the canaries that were done since the last call; an error in asking about one is raised here."""
        done = {task for task in self._asked if task.done()}
        self._asked -= done
        return add(task.result() for task in done)

    async def done(self) -> None:
        """Returns when all are judged."""
        await asyncio.gather(*self._asked, return_exceptions=True)

    async def end(self) -> None:
        """Give up those that are not done."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        self._asked.clear()
