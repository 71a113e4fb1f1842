"""A process that hangs is named and ended, one that is slow is not; what actors warn of is heard."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from capo_ray.cluster.pulse import Pulse, end_tree, watching
from capo_ray.types import Update

SILENCE_S = 0.4


class Actor:
    """Answers as the test says, beside the event loop's other work."""

    def __init__(self, delay: Callable[[int], float], said: tuple[str, ...] = ()) -> None:
        self.asked = 0
        self._delay = delay
        self._said = said

    @property
    def pulse(self) -> Any:
        return self

    async def remote(self) -> Pulse:
        self.asked += 1
        await asyncio.sleep(self._delay(self.asked))
        return Pulse(pid=7, node="n", said=self._said if self.asked == 2 else ())


def watch(actors: dict[str, Actor], seconds: float, hung: Path) -> list[tuple[Any, Pulse | None]]:
    """Who was ended, and what was known of it."""
    ended: list[tuple[Any, Pulse | None]] = []

    def end(actor: Any, last: Pulse | None) -> str:
        ended.append((actor, last))
        return "update (trainer.py:7)" if last else ""

    async def go() -> None:
        async with watching(actors, silence_s=SILENCE_S, every_s=0.01, end=end, hung=hung):
            await asyncio.sleep(seconds)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())
    return ended


def test_what_answers_is_left_alone_and_heard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    actors = {"critic-0": Actor(lambda n: 0.0), "aggregator-0": Actor(lambda n: 0.0, ("every critic is down",))}
    assert watch(actors, 0.5, tmp_path) == [] and all(actor.asked > 2 for actor in actors.values())
    assert caplog.messages == ["aggregator-0: every critic is down"]


def test_one_of_two_that_hangs_is_named_and_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    well, hangs = Actor(lambda n: 0.0), Actor(lambda n: 3600.0 if n == 3 else 0.0)
    ended = watch({"rollout-0": well, "rollout-1": hangs}, 1.0, tmp_path / "hung")
    assert ended == [(hangs, Pulse(pid=7, node="n", said=()))]
    file = tmp_path / "hung" / "rollout-1.txt"
    assert caplog.messages == [
        "rollout-1 has answered nothing for 0 s; it is ended if it stays so",
        "rollout-1 has answered nothing for 0.4 s (cluster.silence_s): it is ended, as if it had died",
        f"what rollout-1 was doing: {file}",
    ]
    assert "update (trainer.py:7)\n" in file.read_text()


def test_stacks_that_cannot_be_written_are_no_hindrance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "hung").write_text("a file")
    hangs = Actor(lambda n: 3600.0 if n in (3, 6) else 0.0)
    assert len(watch({"rollout-1": hangs}, 1.5, tmp_path / "hung")) == 2
    assert caplog.messages[2].endswith("rollout-1.txt cannot be written (File exists)")


def test_one_that_hangs_from_the_first_is_ended_too(tmp_path: Path) -> None:
    hangs = Actor(lambda n: 3600.0 if n == 1 else 0.0)
    assert watch({"trainer-0": hangs}, 1.0, tmp_path) == [(hangs, None)]


def test_one_that_is_slow_is_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten times as slow as one that takes a twentieth of the limit."""
    assert watch({"critic-0": Actor(lambda n: SILENCE_S * 0.6 if n == 2 else SILENCE_S / 20)}, 1.0, tmp_path) == []
    assert caplog.messages == [
        "critic-0 has answered nothing for 0 s; it is ended if it stays so",
        "critic-0 answers again, after 0 s",
    ]


class SlowEngine:
    """A trainer's: an update holds its thread."""

    step = 0

    def update(self, batch: Any) -> Update:
        time.sleep(batch.denominators[0])
        return Update(metrics={"nonfinite_steps": 0.0}, version=1)

    def close(self) -> None: ...


def make_trainer(**given: Any) -> SlowEngine:
    return SlowEngine()


def make_sender(*handles: Any, **given: Any) -> None: ...


@pytest.mark.ray
def test_a_frozen_rank_is_ended_and_one_at_work_is_not(
    ray_here: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Real processes: SIGSTOP of one, an update longer than the limit in the other."""
    from capo_ray.cluster.placement import remote_class

    made = remote_class("trainer").options(num_cpus=0)
    frozen, working = (made.remote(make_trainer, make_sender, rank) for rank in range(2))
    ray_here.get([actor.start.remote("127.0.0.1", 1) for actor in (frozen, working)])
    pid = ray_here.get(frozen.pulse.remote()).pid
    caplog.set_level(logging.ERROR)

    async def go() -> None:
        ranks = {"trainer-0": frozen, "trainer-1": working}
        async with watching(ranks, silence_s=6, every_s=0.2, hung=tmp_path):
            await asyncio.sleep(2)  # in which it has answered
            os.kill(pid, signal.SIGSTOP)
            at_work = working.update.remote("", (0.0, 1.0), [], [14.0])
            with pytest.raises(ray_here.exceptions.RayActorError):
                await frozen.metrics.remote()
            await at_work

    asyncio.run(go())
    assert caplog.messages == [
        "trainer-0 has answered nothing for 6 s (cluster.silence_s): it is ended, as if it had died",
        f"what trainer-0 was doing: {tmp_path / 'trainer-0.txt'}",
    ]
    seen = (tmp_path / "trainer-0.txt").read_text()
    assert f"Process {pid}" in seen and '"MainThread"' in seen, seen
    ray_here.kill(working)


def test_killing_what_is_gone_is_no_error() -> None:
    assert end_tree(2**22 - 1) == ""


def test_the_stacks_of_a_frozen_process_and_its_child_are_seen() -> None:
    from ending import living  # Ray's workers import this file, and not what is beside it

    below = "import time; time.sleep(100)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {below!r}])"
    parent = subprocess.Popen([sys.executable, "-c", start])
    while not (child := psutil.Process(parent.pid).children()):
        time.sleep(0.05)
    time.sleep(0.5)  # until it sleeps
    for pid in (child[0].pid, parent.pid):
        os.kill(pid, signal.SIGSTOP)
    seen = end_tree(parent.pid)
    assert parent.wait(10) == -signal.SIGKILL
    assert living([child[0].pid]) == []
    assert "subprocess.py" in seen and "<module> (<string>:1)" in seen, seen


def test_where_stacks_cannot_be_read_it_is_said() -> None:
    sleep = subprocess.Popen(["sleep", "100"])
    assert f"Process {sleep.pid}: its stacks cannot be read (" in end_tree(sleep.pid)
    assert sleep.wait(10) == -signal.SIGKILL
