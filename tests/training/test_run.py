"""What a run does when its machines are told to go, without any machine."""

from __future__ import annotations

import asyncio

import pytest

from capo_ray.cluster import notices
from capo_ray.cluster.notices import Notice
from capo_ray.training.driver import Stop
from capo_ray.training.run import told_to_move


def heeded(monkeypatch: pytest.MonkeyPatch, found: Notice | Exception) -> tuple[Stop, list[Notice]]:
    async def notice() -> Notice:
        if isinstance(found, Exception):
            raise found
        return found

    async def work() -> tuple[Stop, list[Notice]]:
        stop = Stop()
        async with told_to_move(stop) as told:
            await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return stop, told

    monkeypatch.setattr(notices, "notice", notice)
    return asyncio.run(work())


def test_a_machine_that_goes_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    found = Notice(machines=("10.0.0.7",), within_s=20.0, for_good=False)
    stop, told = heeded(monkeypatch, found)
    assert (stop.asked, stop.for_good, told) == (True, False, [found])
    assert caplog.messages == ["10.0.0.7 is told to go within 20 s: a checkpoint, then the run leaves"]


def test_without_rays_head_the_run_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stop, _ = heeded(monkeypatch, Notice(machines=("10.0.0.1",), within_s=None, for_good=True))
    assert stop.asked and stop.for_good
    assert caplog.messages == [
        "10.0.0.1 is told to go: a checkpoint, then the run ends, since Ray's head or this program is there"
    ]


def test_a_ray_that_could_not_say_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Notice(machines=("10.0.0.7",), within_s=20.0, for_good=False)
    answers = iter([RuntimeError("GCS"), RuntimeError("GCS"), found])

    async def notice() -> Notice:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    async def work() -> list[Notice]:
        async with told_to_move(Stop()) as told, asyncio.timeout(20):
            while not told:
                await asyncio.sleep(0.01)
        return told

    monkeypatch.setattr(notices, "notice", notice)
    monkeypatch.setattr(notices, "LOOK_S", 0.01)
    assert asyncio.run(work()) == [found]


def test_a_ray_that_cannot_say_keeps_nobody_from_going_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop, told = heeded(monkeypatch, RuntimeError("GCS"))
    assert not stop.asked and told == []
    assert caplog.messages == ["Ray does not say which machines are told to go: GCS"]
