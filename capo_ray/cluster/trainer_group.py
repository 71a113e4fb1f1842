"""The trainer ranks as one: starts them together, cuts a batch into their shares, calls all of them in step.

Each rank is sent the groups it trains on and no others, by reference. Leaves out the update itself
(engines.train_deepspeed) and the arithmetic of the shares (learn.batch).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from ray.exceptions import RayActorError

from capo_ray.cluster.ahead import Groups
from capo_ray.cluster.faults import cause_of, is_loss
from capo_ray.cluster.patience import END_S, with_patience
from capo_ray.learn.batch import Aggregation, centre_and_spread, denominators
from capo_ray.learn.packing import Packing
from capo_ray.learn.plan import Plan, Size, plan
from capo_ray.types import Batch, GroupSummary, Metrics, Update

Place = tuple[int, int]
"""(group, member) of a response in a batch."""
GRACE_S = 10.0
"""Seconds in which Ray hears of a rank that died."""
WORD_S = {"score": 300.0, "update": 300.0, "save": 300.0}
"""A wait is logged as often; others every 30 s."""
log = logging.getLogger(__name__)


class TrainerGroup:
    def __init__(
        self,
        actors: Sequence[Any],
        *,
        tokens_per_micro_batch: int,
        responses_per_update: int | None,
        packing: Packing,
        aggregation: Aggregation,
        max_response_tokens: int,
        over_batch: bool = False,
        old_ahead: bool = False,
    ) -> None:
        """`over_batch`: whether advantages are standardised over the whole batch before they are trained on.
        `old_ahead`: whether `score` is to make log-probabilities of the policy too, not of the reference alone."""
        self._actors = list(actors)
        self._tokens_per_micro_batch = tokens_per_micro_batch
        self._responses_per_update = responses_per_update
        self._packing: Packing = packing
        self._aggregation: Aggregation = aggregation
        self._max_response_tokens = max_response_tokens
        self._over_batch = over_batch
        self._old_ahead = old_ahead

    async def start(self) -> None:
        try:
            host, port = await with_patience(self._actors[0].address.remote(), "trainer rank 0 to say where it is")
            await self._all("start", host, port)
        except RayActorError as error:
            raise RuntimeError(f"a trainer rank could not start: {cause_of(error)}") from error

    async def connect(self, workers: Sequence[Any]) -> None:
        """Open the weight transfer to the rollout workers."""
        await self._all("connect", list(workers))

    async def score(self, groups: Groups) -> None:
        """Log-probabilities that the next update compares with, of responses that may be in it."""
        calls = []
        for rank, actor in enumerate(self._actors):
            mine = groups[rank :: len(self._actors)]
            calls.append(
                actor.score.remote(
                    [prompt for prompt, _ in mine], [responses for _, responses in mine], self._old_ahead
                )
            )
        await _together(calls, "score")

    async def update(self, batch: Batch, *, keep_in: Path) -> Update:
        """One rollout batch; every rank makes the same number of optimizer steps. Where a gradient is not finite, ranks
        write what they trained on to the folder `keep_in`."""
        groups = [group for group in batch.groups if group.lengths]
        places, sizes = _flatten(groups)
        made = plan(
            sizes,
            ranks=len(self._actors),
            tokens_per_micro_batch=self._tokens_per_micro_batch,
            responses_per_update=self._responses_per_update,
            packing=self._packing,
        )
        divisors = denominators(
            [size.response_tokens for size in sizes],
            made,
            self._aggregation,
            max_response_tokens=self._max_response_tokens,
        )
        scale = centre_and_spread(group.tally for group in groups) if self._over_batch else (0.0, 1.0)
        calls = [
            actor.update.remote(str(keep_in), scale, *_share(made, rank, places, divisors, groups))
            for rank, actor in enumerate(self._actors)
        ]
        updates: list[Update] = await _together(calls, "update")
        return updates[0]

    async def publish_weights(self, version: int) -> str:
        """Returns the checksum that every rollout worker has confirmed."""
        checksums = await self._all("publish_weights", version)
        return checksums[0]

    async def sleep(self) -> None:
        """Leave the GPUs to others; what it holds is kept. Told twice it stays so."""
        await self._all("sleep")

    async def wake(self) -> None:
        await self._all("wake")

    async def give_back(self) -> None:
        """Leave to others what the ranks' allocators keep from their last work."""
        await self._all("give_back")

    async def save(self, path: Path) -> None:
        await self._all("save", str(path))

    async def restore(self, path: Path) -> None:
        await self._all("restore", str(path))

    async def save_pretrained(self, path: Path) -> None:
        await self._all("save_pretrained", str(path))

    @property
    def ranks(self) -> int:
        return len(self._actors)

    async def metrics(self) -> list[Metrics]:
        """Totals of every rank."""
        return await self._all("metrics")

    async def close(self) -> None:
        await self._all("close")

    async def _all(self, what: str, *arguments: Any) -> list[Any]:
        return await _together([getattr(actor, what).remote(*arguments) for actor in self._actors], what)


async def _together(
    calls: Sequence[Awaitable[Any]],
    what: str,
    *,
    word_s: float | None = None,
    end_s: float = END_S,
    grace_s: float = GRACE_S,
) -> list[Any]:
    """What all ranks return. A wait is logged with the ranks that are missing, and ends after `end_s`.

    A rank whose peer died may say before Ray does that a connection broke: the death is what is raised then, if it is
    heard of within `grace_s`."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await _finished(tasks, what, word_s or WORD_S.get(what, 30.0), end_s)
        return await asyncio.gather(*tasks)
    except Exception as error:
        if not is_loss(error):
            done, _ = await asyncio.wait(tasks, timeout=grace_s)
            for fault in (task.exception() for task in done):
                if fault is not None and is_loss(fault):
                    raise fault from error
        raise
    finally:
        for task in tasks:
            task.cancel()


async def _finished(tasks: Sequence[asyncio.Future[Any]], what: str, word_s: float, end_s: float) -> None:
    """Until all are done or one has failed."""
    start = monotonic()
    while True:
        done, late = await asyncio.wait(tasks, timeout=word_s, return_when=asyncio.FIRST_EXCEPTION)
        if not late or any(task.exception() for task in done):
            return
        ranks = ", ".join(str(rank) for rank, task in enumerate(tasks) if task in late)
        waited = monotonic() - start
        if waited > end_s:
            raise TimeoutError(f"trainer ranks {ranks} did not end {what} within {end_s:g} s; their logs say why")
        log.warning("waiting for trainer ranks %s to end %s since %.0f s", ranks, what, waited)


def _flatten(groups: Sequence[GroupSummary]) -> tuple[list[Place], list[Size]]:
    """Per response of the batch, in order: its place and its size."""
    places = [(g, m) for g, group in enumerate(groups) for m in range(len(group.lengths))]
    sizes = [
        Size(group.prompt_tokens, length - group.prompt_tokens, g)
        for g, group in enumerate(groups)
        for length in group.lengths
    ]
    return places, sizes


def _share(
    made: Plan, rank: int, places: Sequence[Place], divisors: Sequence[float], groups: Sequence[GroupSummary]
) -> list[Any]:
    """Arguments of `TrainerActor.update` for one rank, but the first two: groups are renumbered to those it is sent."""
    used = sorted({places[i][0] for step in made[rank] for indices in step for i in indices})
    number = {group: position for position, group in enumerate(used)}
    layout = [[[(number[places[i][0]], places[i][1]) for i in indices] for indices in step] for step in made[rank]]
    return [layout, list(divisors), *(groups[group].handle for group in used)]
