"""An actor ends with its engine, and Ray starts it again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from capo_ray.cluster.lifeline import Lifeline
from capo_ray.types import Metrics


class Engine:
    """Its process is gone once the file `grave` is there; the first that finds out removes it."""

    def __init__(self, grave: str) -> None:
        self.name = "critic-0"
        self._grave = Path(grave)

    @property
    def dead(self) -> bool:
        try:
            self._grave.unlink()
        except FileNotFoundError:
            return False
        return True

    async def complete(self, messages: Sequence[Mapping[str, str]], sampling: Any, *, n: int, seed: int) -> int:
        if seed < 0:
            self._grave.touch()
        if seed == -1:
            raise RuntimeError("EngineDeadError")
        if seed == -2:
            await asyncio.sleep(3600)  # as vLLM's calls that are never answered
        return seed

    async def pulse(self) -> None: ...

    def metrics(self) -> Metrics:
        return {}


def make(grave: str) -> Engine:
    return Engine(grave)


def test_a_call_that_fails_ends_it_at_once(tmp_path: Path) -> None:
    ended: list[str] = []
    alive = Lifeline(Engine(str(tmp_path / "grave")), every_s=3600, end=lambda: ended.append("end"))
    with pytest.raises(ValueError, match="no fault of the engine"), alive():
        raise ValueError("no fault of the engine")
    assert ended == []
    (tmp_path / "grave").touch()
    with pytest.raises(ValueError, match="the engine died"), alive():
        raise ValueError("the engine died")
    assert ended == ["end"]


def test_it_ends_when_nobody_asks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = threading.Event()
    (tmp_path / "grave").touch()
    Lifeline(Engine(str(tmp_path / "grave")), every_s=0.01, end=ended.set)
    assert ended.wait(10)
    assert "critic-0: the engine's process died, and this one ends with it" in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.parametrize("way", [-1, -2], ids=["a call fails", "a call hangs"])
def test_a_caller_sees_the_actor_die_and_ray_starts_it_again(ray_here: Any, tmp_path: Path, way: int) -> None:
    from capo_ray.cluster.actors import CriticActor
    from capo_ray.cluster.patience import when_up

    actor = (
        ray_here.remote(CriticActor)
        .options(num_cpus=0, max_concurrency=100, max_restarts=1)
        .remote(partial(make, str(tmp_path / "grave")))
    )

    async def use() -> int:
        with pytest.raises(RayActorError):
            await actor.complete.remote([], None, 1, way)
        await when_up(actor, "the critic")
        return await actor.complete.remote([], None, 1, 7)

    assert asyncio.run(use()) == 7
