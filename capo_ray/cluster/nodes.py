"""One question to every node of a cluster that runs already: what `capo_ray.doctor` looks at elsewhere.

Joins the cluster and leaves it as it was. Leaves out what is asked and what the answers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capo_ray.cluster.session import worker_environment

T = TypeVar("T")
PATIENCE_S = 90
"""For a node to start a worker, and for it to answer."""


def ask_every_node(address: str, question: Callable[[], T]) -> tuple[dict[str, T | str], dict[str, float]]:
    """Answer of every living node by its address, an error's text where it gave none; and the cluster's resources.

    Raises ConnectionError where there is no cluster.
    """
    ray.init(
        address=address, runtime_env={"env_vars": worker_environment()}, log_to_driver=False, logging_level="ERROR"
    )
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]

        def ask() -> T:  # Ray takes functions alone
            return question()

        remote = ray.remote(num_cpus=0, max_retries=0)(ask)
        asked = [remote.options(scheduling_strategy=_on(node)).remote() for node in nodes]
        ray.wait(asked, num_returns=len(asked), timeout=PATIENCE_S)
        return {
            name_of(node, nodes): _answer(one) for node, one in zip(nodes, asked, strict=True)
        }, ray.cluster_resources()
    finally:
        ray.shutdown()


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def name_of(node: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Its address, with the beginning of its id where several share one machine."""
    address = str(node["NodeManagerAddress"])
    alone = sum(other["NodeManagerAddress"] == address for other in nodes) == 1
    return address if alone else f"{address} ({node['NodeID'][:6]})"


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=0)
    except Exception as error:  # whatever keeps one node from answering is what is wanted to be known
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else 'no answer'}"
