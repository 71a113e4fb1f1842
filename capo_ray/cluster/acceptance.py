"""Whether a batch may be trained on: not where too many of its critiques failed or too many of its groups were dropped.

Leaves out how failures are counted over steps (critics.failures) and what is written down of a batch that is refused
(crew).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from capo_ray.critics.failures import FailureLimit
from capo_ray.critics.service import CriticsFailed
from capo_ray.records.tally import add
from capo_ray.types import Batch

log = logging.getLogger(__name__)


class TooManyDropped(RuntimeError):
    """More groups than allowed could not be trained on."""


class Acceptance:
    def __init__(self, aggregators: Sequence[Any], failures: FailureLimit, *, max_dropped_share: float) -> None:
        """`aggregators` are asked why a critique failed."""
        self._aggregators = aggregators
        self._failures = failures
        self._max_dropped_share = max_dropped_share

    async def look(self, batch: Batch) -> None:
        """Raises CriticsFailed or TooManyDropped."""
        try:
            warning = self._failures.look(batch.step, [group.tally for group in (*batch.groups, *batch.spare)])
        except CriticsFailed as error:
            raise CriticsFailed(f"{error}{await self._example()}") from None
        if warning:
            log.warning("%s%s", warning, await self._example())
        dropped = sum(group.tally.get("groups_dropped", 0.0) for group in batch.groups) / len(batch.groups)
        if dropped > self._max_dropped_share:
            raise TooManyDropped(
                f"step {batch.step}: {dropped:.0%} of the groups cannot be trained on, max_dropped_share is "
                f"{self._max_dropped_share:.0%}: {_why_dropped(batch)}"
            )

    async def _example(self) -> str:
        causes = await asyncio.gather(*(shard.failure.remote() for shard in self._aggregators))
        return next((f". One of them: {cause}" for cause in causes if cause), "")


def _why_dropped(batch: Batch) -> str:
    tally = add(group.tally for group in batch.groups)
    named = {name: int(tally.get(name, 0)) for name in ("responses", "unverifiable", "unjudged")}
    failed = {
        name.removeprefix("critique_"): int(value)
        for name, value in tally.items()
        if name.startswith("critique_") and name not in ("critique_tokens", "critique_ok")
    }
    return ", ".join(f"{count} {name}" for name, count in (named | failed).items())
