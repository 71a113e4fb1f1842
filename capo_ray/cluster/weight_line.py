"""The trainer's line to the rollout workers while weights move: Ray calls as plain futures.

Leaves out who is asked what, and how long is waited (engines.receivers).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from capo_ray.engines.protocols import Stage, WeightReceipt
from capo_ray.engines.receivers import Receivers
from capo_ray.planning.bundles import actor_name


def receivers_of(workers: Sequence[Any], *, gpus_each: int) -> Receivers:
    """`workers`: rollout actors. For a trainer's process: the driver's loop must not block."""
    return Receivers(
        {actor_name("rollout", number): partial(_ask, worker) for number, worker in enumerate(workers)},
        gpus_each=gpus_each,
    )


def _ask(worker: Any, stage: Stage, given: dict[str, Any]) -> Future[WeightReceipt | None]:
    answer: Future[WeightReceipt | None] = worker.take_weights.remote(stage, given).future()
    return answer
