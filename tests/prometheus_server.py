"""A Prometheus of a test's own, and what the dashboard would ask it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from capo_ray.engines.ports import free_port

BOARD = Path(__file__).resolve().parents[1] / "launch" / "grafana" / "capo_ray.json"


def dashboard_queries(run: str) -> list[str]:
    """Those of every panel, of one run."""
    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [query.replace("$run", run).replace("$__rate_interval", "1m") for query in asked]


class Prometheus:
    def __init__(self, target: str, folder: Path) -> None:
        """`target` is the address that is scraped; what it keeps is kept in `folder`."""
        self._at = f"127.0.0.1:{free_port()}"
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
