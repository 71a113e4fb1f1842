"""A real Prometheus reads what actors and a run publish through Ray, and understands what the dashboard asks it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

BOARD = Path(__file__).resolve().parents[2] / "launch" / "grafana" / "capo_ray.json"


class Engine:
    """Ten tokens more whenever it is asked."""

    name, dead, version = "rollout-0", False, 3

    def __init__(self) -> None:
        self._tokens = 0

    def metrics(self) -> dict[str, float]:
        self._tokens += 10
        return {"generated_tokens": self._tokens, "busy_s": self._tokens / 100, "running": 4, "waiting": 2}


class Prometheus:
    def __init__(self, target: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._at = f"127.0.0.1:{probe.getsockname()[1]}"
        scraped = [{"job_name": "ray", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}]
        (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": scraped}))  # JSON is YAML
        self._process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
                *(f"--web.listen-address={self._at}", "--log.level=error"),
            ]
        )

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Raises HTTPError where Prometheus cannot read the query."""
        url = f"http://{self._at}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def wait_for(self, query: str, *, above: float = -1.0) -> dict[str, Any]:
        """The one series of `query`, once it is there."""
        for _ in range(240):
            try:
                found = self.ask(query)
            except (ConnectionError, urllib.error.URLError):
                found = []
            if found and float(found[0]["value"][1]) > above:
                assert len(found) == 1, found
                return found[0]
            time.sleep(0.25)
        raise AssertionError(f"nothing came of {query}")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


@pytest.fixture
def prometheus(ray_here: Any, tmp_path: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (Debian's package `prometheus`)")
    (node,) = ray_here.nodes()
    started = Prometheus(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}", tmp_path)
    try:
        yield started
    finally:
        started.end()


def test_a_real_prometheus_reads_it(ray_here: Any, prometheus: Prometheus) -> None:
    from capo_ray.cluster.actors import RolloutActor
    from capo_ray.cluster.gauges import Badge, RunGauges

    badge = Badge("night", "rollout", "rollout-0")
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
        for name, value in (("critic_valid_share", 0.8), ("evaluation_outcome_accuracy", 0.5), ("step", 8)):
            assert float(prometheus.wait_for(f'ray_capo_{name}{{run="night"}}')["value"][1]) == value
    finally:
        run.close()
        ray_here.kill(actor)
    shown = [panel["targets"] for panel in json.loads(BOARD.read_text())["panels"] if "targets" in panel]
    for query in (target["expr"] for targets in shown for target in targets):
        prometheus.ask(query.replace("$run", ".*").replace("$__rate_interval", "1m"))
