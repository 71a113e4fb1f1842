"""Two of everything at once, as a user starts it, watched from outside and interrupted."""

from __future__ import annotations

import shutil
import signal
import time
import urllib.error
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openai_server import chat, serving_in_thread
from prometheus_server import Prometheus, dashboard_queries
from running import QUICK, Running

from capo_ray.cluster.gauges import SERIES
from capo_ray.credit.critique import render_reply

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

KEY = "sk-a-secret"
SECRETS = ("JUDGE_KEY", "HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")
"""Variables that hold one."""
FAULTS = ('outcome!~"ok|not_asked"', "actor_retries_total")
"""Of which there are none here, and Ray has no counter that stands at 0."""


def watch(running: Running, folder: Path) -> None:
    """Have a Prometheus find the run's Ray as launch/grafana/up.sh does, and ask all that the dashboard would."""
    if shutil.which("prometheus") is None:
        warnings.warn("nobody watches: Prometheus is not installed (Debian's package `prometheus`)", stacklevel=2)
        return
    session = Path((running.run_dir / "ray_session").read_text().strip()) / "session_latest"
    (port,) = session.glob("metrics_export_port_*")
    prometheus = Prometheus(f"127.0.0.1:{port.read_text().strip()}", folder)
    try:
        asked = [
            query for query in dashboard_queries(running.run_dir.name) if not any(fault in query for fault in FAULTS)
        ]
        assert unanswered(prometheus, asked, seconds=90) == []
        published = [f"count by (role) (ray_{one.name})" for one in SERIES if not one.name.endswith(FAULTS)]
        assert unanswered(prometheus, published, seconds=10) == []
        answers = prometheus.ask("count by (role, actor) (ray_capo_actor_busy_seconds_total)")
    finally:
        prometheus.end()
    assert {(answer["metric"]["role"], answer["metric"]["actor"]) for answer in answers} >= {
        (role, f"{role}-{number}") for role in ("rollout", "critic", "aggregator", "trainer") for number in range(2)
    }


def unanswered(prometheus: Prometheus, queries: Sequence[str], *, seconds: float) -> list[str]:
    """Those of `queries` that nothing came of in so many seconds."""
    left, deadline = list(queries), time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        time.sleep(1)
        for query in tuple(left):
            with suppress(ConnectionError, urllib.error.URLError):
                if prometheus.ask(query):
                    left.remove(query)
    return left


def test_two_of_everything_one_step_behind_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two critics that vote in turn too, one behind a server that wants a key, and an advantage and a surrogate out of
    a file in the folder that it is started from. A Prometheus that watches has an answer to whatever the dashboard
    asks."""
    keys: set[str | None] = set()

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        keys.add(request.headers.get("Authorization"))
        return chat([f"With {KEY}:\n{render_reply([0])}"] * body.get("n", 1))  # some servers say it again

    for name in SECRETS:
        monkeypatch.setenv(name, KEY)
    (tmp_path / "my_file.py").write_text(
        "from capo_ray.credit.advantage import ALGORITHMS\nfrom capo_ray.learn.surrogate import clip\n"
        "CAPO = ALGORITHMS['capo']\n"
    )
    with serving_in_thread(answer) as endpoint:
        settings = (
            *QUICK,
            "steps=400",
            "rollout.workers=2",
            "critic.workers=2",
            f"critic.others=[{{kind:http,endpoints:['{endpoint}'],served_model:judge,api_key_env:JUDGE_KEY}}]",
            "critic.canaries={source:arithmetic,rate:0.2}",
            "critic.tokens_per_step=3072",  # two groups, as long as nobody knows what critiques cost
            "reward.aggregators=2",
            "trainer.zero_stage=3",
            "trainer.optimisation_passes=2",
            "algorithm.max_staleness=1",
            "algorithm.advantage=my_file:CAPO",
            "algorithm.surrogate=my_file:clip",
            "algorithm.old_logprobs=sampler",
            "algorithm.kl_weight=0.01",
            "reward.vote=average",
        )
        with Running(tmp_path / "run", *settings) as running:
            running.read_until("step   4/400")
            watch(running, tmp_path)
            live = running.temporary_files()
            ran = running.interrupt(signal.SIGINT)
    assert [line["staleness"] for line in ran.steps[:4]] == [0, 1, 1, 1]
    assert [line["critic/over_budget_share"] for line in ran.steps[:2]] == [0.5, 0.5]
    assert all(line["critic/over_budget_share"] < 0.5 for line in ran.steps[2:])
    assert {tuple(sample["versions"]) for sample in ran.samples if sample["step"] == 4} == {(2,)}
    server = f"judge at {endpoint.removeprefix('http://').removesuffix('/v1')}"
    judged = [sample["critiques"] for sample in ran.samples if any(c["critic"] for c in sample["critiques"])]
    assert judged  # what is over the budget has critiques that nobody was asked for
    for critiques in judged:
        here = critiques[0]["critic"]
        assert here in ("critic-0", "critic-1") and [c["critic"] for c in critiques] == [here, server] * 2
        assert [c["wrong_steps"] for c in critiques][1::2] == [[0], [0]]
    assert keys == {f"Bearer {KEY}"}
    assert any(path.endswith("/logs/raylet.out") for path in live)
    assert [path for path, content in live.items() if KEY.encode() in content] == []
    written = [path.read_bytes() for path in ran.run_dir.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in [*written, ran.output.encode()])
