"""A real Prometheus reads what an actor and a run publish through Ray: each number under its name and labels.

What a whole run publishes, and whether the dashboard's questions have answers, is asked in tests/e2e."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # actors import this module, and not what stands beside its folder
    from prometheus_server import Prometheus

pytestmark = pytest.mark.ray


class Engine:
    """Ten tokens more whenever it is asked."""

    name, dead, version = "rollout-0", False, 3

    def __init__(self) -> None:
        self._tokens = 0

    def metrics(self) -> dict[str, float]:
        self._tokens += 10
        return {"generated_tokens": self._tokens, "busy_s": self._tokens / 100, "running": 4, "waiting": 2}

    def judging(self) -> dict[str, float]:
        return {"generated_tokens": 7.0, "busy_s": 1.0, "running": 1, "waiting": 0}


@pytest.fixture
def prometheus(ray_here: Any, tmp_path: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (Debian's package `prometheus`)")
    from prometheus_server import Prometheus

    (node,) = ray_here.nodes()
    started = Prometheus(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}", tmp_path)
    try:
        yield started
    finally:
        started.end()


def test_a_real_prometheus_reads_it(ray_here: Any, prometheus: Prometheus) -> None:
    from prometheus_server import dashboard_queries

    from capo_ray.cluster.actors import RolloutActor
    from capo_ray.cluster.gauges import Badge, RunGauges

    badge = Badge("night", "rollout", "rollout-0", critic="critic-0")
    actor = ray_here.remote(RolloutActor).options(num_cpus=0, max_concurrency=10).remote(Engine, badge)
    run = RunGauges("night", every_s=1)
    run.write(6, {"critic/valid_share": 0.9, "evaluation/outcome/accuracy": 0.5})
    run.write(7, {"critic/valid_share": 0.8})
    try:
        ray_here.get(actor.ready.remote())
        tokens = 'ray_capo_actor_generated_tokens_total{run="night",role="rollout",actor="rollout-0"}'
        first = float(prometheus.wait_for(tokens)["value"][1])
        assert prometheus.wait_for(tokens, above=first)["metric"]["__name__"] == "ray_capo_actor_generated_tokens_total"
        for name, value in (("actor_running", 4), ("actor_waiting", 2), ("actor_weight_version", 3)):
            assert float(prometheus.wait_for(f'ray_capo_{name}{{actor="rollout-0"}}')["value"][1]) == value
        for name, value in (("generated_tokens_total", 7), ("busy_seconds_total", 1), ("running", 1)):
            as_critic = f'ray_capo_actor_{name}{{run="night",role="critic",actor="critic-0"}}'
            assert float(prometheus.wait_for(as_critic)["value"][1]) == value
        for name, value in (("critic_valid_share", 0.8), ("evaluation_outcome_accuracy", 0.5), ("step", 7)):
            assert float(prometheus.wait_for(f'ray_capo_{name}{{run="night"}}')["value"][1]) == value
    finally:
        run.close()
        ray_here.kill(actor)
    for query in dashboard_queries("night"):
        prometheus.ask(query)  # those of faults too, which have no answer in a run without any
