"""A real vLLM server of the tiny critic, judged through over HTTP: critiques can be read, and a seed means a text.

The server is that of `vllm serve`, started by its module: the command itself looks for a package of the name vllm, and
that for CPU has another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from asked import asked_with
from openai_server import critic_at

from capo_ray.credit.critique import Reference
from capo_ray.credit.template import shipped
from capo_ray.critics.service import Critics
from capo_ray.engines.critic_http import HttpCritic
from capo_ray.engines.ports import free_port
from capo_ray.engines.protocols import PromptTooLong
from capo_ray.models.find import ASSETS
from capo_ray.types import Critique, Sampling

pytestmark = pytest.mark.engine

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",  # eager, it compiles the count of ranks all the same
    "CUDA_VISIBLE_DEVICES": "",
}
# As engines.vllm_engine sets it on CPU.
OPTIONS = ("--enforce-eager", "--dtype=float32", "--block-size=32", "--no-enable-chunked-prefill", "--max-num-seqs=64")
QUESTION = "Start with 17. Add 5, then subtract 8."
SOLUTION = Reference("solution", "17 + 5 = 22.\n\n22 - 8 = 14.\n\nThe answer is \\boxed{14}.")
STEPS = ["17 + 5 = 23.", "23 - 8 = 15.", "The answer is \\boxed{15}."]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server, in a process group of its own that is ended as a whole."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={ASSETS / 'tiny_critic'}"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={port}", "--served-model-name=tiny", "--api-key=a-key", *OPTIONS],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"vllm serve did not start: {log.read_text(errors='replace')[-2000:]}")


def critic(endpoint: str) -> HttpCritic:
    os.environ["TINY_KEY"] = "a-key"
    return critic_at(endpoint, "tiny", api_key_env="TINY_KEY")


def judge(endpoint: str, seed: int, *sizes: int, temperature: float = 0.7) -> list[tuple[Critique, ...]]:
    """The critiques of one response, once per entry of `sizes`."""

    async def scene() -> list[tuple[Critique, ...]]:
        engine = critic(endpoint)
        settings = asked_with(template=shipped("brief"), max_critique_tokens=96, temperature=temperature, top_p=1.0)
        service = Critics([engine], settings)
        try:
            return [await service.judge(QUESTION, SOLUTION, STEPS, response_key="p/0", seed=seed, k=k) for k in sizes]
        finally:
            await engine.close()

    return asyncio.run(scene())


def texts(critiques: tuple[Critique, ...]) -> list[str]:
    return [critique.text for critique in critiques]


def test_critiques_can_be_read(endpoint: str) -> None:
    (critiques,) = judge(endpoint, 3, 16)
    assert sum(critique.outcome == "ok" for critique in critiques) >= 12, texts(critiques)
    assert all(critique.num_tokens > 0 and critique.critic.startswith("tiny at 127.0.0.1:") for critique in critiques)


def test_a_seed_means_a_text_in_one_request_and_in_several(endpoint: str) -> None:
    """Critique i is the same whether asked for beside seven others, beside three, or alone."""
    eight, four = judge(endpoint, 11, 8, 4, temperature=2.0)
    (again,) = judge(endpoint, 11, 8, temperature=2.0)
    assert len(set(texts(eight))) > 4
    assert texts(eight) == texts(again) and texts(eight)[:4] == texts(four)
    alone = [judge(endpoint, 11 + i, 1, temperature=2.0)[0][0].text for i in range(8)]
    assert alone == texts(eight)
    assert texts(judge(endpoint, 12345, 8, temperature=2.0)[0]) != texts(eight)


def test_too_long_for_its_window(endpoint: str) -> None:
    async def scene() -> None:
        engine = critic(endpoint)
        try:
            with pytest.raises(PromptTooLong, match="HTTP 400"):
                await engine.complete(
                    ({"role": "user", "content": "1 + 1 = 2. " * 2000},), Sampling(max_tokens=16), n=2, seed=0
                )
        finally:
            await engine.close()

    asyncio.run(scene())
