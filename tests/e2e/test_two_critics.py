"""A whole run with two critics at once: one on vLLM in the run, one behind a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openai_server import chat, serving_in_thread

from capo_ray.credit.critique import render_reply

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-a-secret"


def test_they_vote_in_turn(tmp_path: Path) -> None:
    keys: set[str | None] = set()

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        keys.add(request.headers.get("Authorization"))
        return chat([render_reply([0])] * body.get("n", 1))

    with serving_in_thread(answer) as endpoint:
        other = f"{{kind:http,endpoints:['{endpoint}'],served_model:judge,api_key_env:JUDGE_KEY}}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "capo_ray.launch", "+experiment=tiny_cpu", f"run_dir={tmp_path / 'run'}"),
                *("steps=1", "prompts_per_step=4", "responses_per_prompt=4", "trainer.responses_per_update=8"),
                *("data.evaluation_prompts=0", "tracking.wandb=off", f"critic.others=[{other}]"),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JUDGE_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    files = (tmp_path / "run" / "samples").glob("*.jsonl")
    samples = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(samples) == 16
    server = f"judge at {endpoint.removeprefix('http://').removesuffix('/v1')}"
    for sample in samples:
        assert [critique["critic"] for critique in sample["critiques"]] == ["critic-0", server] * 2
        assert [critique["wrong_steps"] for critique in sample["critiques"]][1::2] == [[0], [0]]
    assert keys == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in [*written, done.stdout.encode(), done.stderr.encode()])
