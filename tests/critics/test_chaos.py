"""Twenty thousand requests over HTTP to servers that die, hang, refuse and talk nonsense: none lost, none twice."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asked import asked_with
from openai_server import critic_at

from capo_ray.credit.critique import Reference
from capo_ray.critics.service import Critics
from capo_ray.engines.critic_http import HttpCritic
from capo_ray.types import Critique

pytestmark = pytest.mark.slow

RESPONSES = 20_000
CRITIQUES = 2
REFERENCE = Reference("none")


@contextmanager
def servers(seed: str, *wanted: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process of servers and their ports."""
    script = Path(__file__).parents[1] / "chaos_servers.py"
    process = subprocess.Popen([sys.executable, str(script), seed, *wanted], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, [int(port) for port in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def engine(port: int) -> HttpCritic:
    return critic_at(f"http://127.0.0.1:{port}/v1")


async def judge_all(service: Critics, at: dict[int, object]) -> list[tuple[Critique, ...]]:
    """Judge everything; `at` says what happens when so many are done."""
    done = 0

    async def one(number: int) -> tuple[Critique, ...]:
        nonlocal done
        critiques = await service.judge(
            f"question {number // 16}", REFERENCE, ["a step"], response_key=str(number), seed=10 * number
        )
        done += 1
        if done in at:
            at[done]()  # type: ignore[operator]
        return critiques

    return await asyncio.gather(*(one(number) for number in range(RESPONSES)))


def test_twenty_thousand_requests() -> None:
    settings = asked_with(
        critiques=CRITIQUES,
        max_critique_tokens=16,
        max_sequences=64,
        deadline_s=20.0,
        deadline_floor_s=1.0,
        attempts=6,
        backoff_s=0.01,
        break_pause_s=0.2,
        outage_limit_s=60.0,
    )
    kinds = ("good", "failing", "busy", "garbage", "hanging", "breaking")
    with (
        servers("a", *(f"0:{kind}" for kind in kinds)) as (_, ports),
        servers("b", "0:good") as (dies, (port_b,)),
        servers("c", "0:good") as (restarts, (port_c,)),
    ):
        started: list[subprocess.Popen[str]] = []

        def again() -> None:
            script = Path(__file__).parents[1] / "chaos_servers.py"
            started.append(
                subprocess.Popen([sys.executable, str(script), "d", f"{port_c}:good"], stdout=subprocess.DEVNULL)
            )

        async def scene() -> tuple[list[tuple[Critique, ...]], dict[str, float]]:
            engines = [engine(port) for port in (*ports, port_b, port_c)]
            service = Critics(engines, settings)
            at = {RESPONSES // 10: dies.kill, RESPONSES // 5: restarts.kill, RESPONSES // 3: again}
            try:
                return await judge_all(service, at), service.metrics()
            finally:
                for one in engines:
                    await one.close()

        try:
            answers, metrics = asyncio.run(scene())
        finally:
            for process in started:
                process.kill()
                process.wait()

    assert [len(critiques) for critiques in answers] == [CRITIQUES] * RESPONSES
    outcomes = Counter(critique.outcome for critiques in answers for critique in critiques)
    assert outcomes["ok"] > 0.995 * RESPONSES * CRITIQUES, outcomes
    marks = set()
    for number, critiques in enumerate(answers):
        for i, critique in enumerate(critiques):
            if critique.outcome != "ok":
                assert critique.text == "" and critique.outcome in ("engine_error", "timeout")
                continue
            seed, mark = critique.text.split("\n")[0].split(" ")
            assert int(seed) == 10 * number + i  # the answer to this very question
            marks.add(mark)
    assert len(marks) == outcomes["ok"]  # no answer counted for two critiques
    assert {mark[0] for mark in marks} == set("abcd")  # the one that was started again is used again
    assert metrics["responses"] == RESPONSES
    assert {name: metrics[f"outcome_{name}"] for name in outcomes} == outcomes
    assert metrics["critique_tokens"] == 5 * outcomes["ok"]
    assert metrics["retries"] > 100
