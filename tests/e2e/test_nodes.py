"""A machine of a joined cluster that is lost: another takes its place, and the run goes on with the same numbers.

The machines are raylets on this one, with a core each, as Ray's own tests have them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import QUICK, Running, numbers, steps_in

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(600)]

STORE = 200 << 20
"""Bytes of a node's object store."""
MORE_THAN_ONE = "reward.aggregators=7"
"""With two trainer ranks, a rollout worker and a critic: eleven actors of a tenth of a core each."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=STORE)
    yield made
    made.shutdown()


def test_a_lost_machine_is_waited_for_and_replaced(cluster: Any, tmp_path: Path) -> None:
    settings = (*QUICK, "steps=8", "checkpoint_every=1", MORE_THAN_ONE, f"cluster.address={cluster.address}")
    with Running(tmp_path / "run", *settings) as running:
        running.read_until("step 3/8")
        begun = time.monotonic()
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        running.read_past("was lost")
        noticed = time.monotonic() - begun
        running.read_past("waiting for the lost machine, or another, since ")
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        running.read_steps(2)
        print(f"a node lost: noticed {noticed:.0f} s, two steps on {time.monotonic() - begun:.0f} s")
        ended = running.end()
    assert ended.code == 0, ended.output
    seen = numbers(ended.steps)
    assert sorted(seen) == list(range(1, 9))
    again = [numbers(steps_in(folder)) for folder in (ended.run_dir / "rolled_back").glob("*")]
    for step, line in [pair for lines in again for pair in lines.items()]:
        assert seen.get(step, line) == line, f"step {step} has other numbers when it is done again"
