"""Waiting that ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from capo_ray.cluster import actors
from capo_ray.cluster.patience import ends_within, with_patience


def test_a_call_that_does_not_end_is_left_behind() -> None:
    never = threading.Event()
    assert not ends_within(0.01, never.wait)
    never.set()


def test_a_call_that_ends_is_waited_for_and_its_error_is_raised() -> None:
    done: list[int] = []
    assert ends_within(10, lambda: done.append(1)) and done == [1]
    with pytest.raises(ZeroDivisionError):
        ends_within(10, lambda: 1 // 0)


def test_a_wait_says_what_for_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        await with_patience(asyncio.Event().wait(), "rollout-0 to start", patience_s=0.01, end_s=0.03)

    with pytest.raises(TimeoutError, match="waited in vain for rollout-0 to start"):
        asyncio.run(use())
    assert "waiting for rollout-0 to start since" in caplog.text


class Silent:
    def gpu(self) -> None:
        time.sleep(3600)


@pytest.mark.ray
def test_ranks_that_do_not_say_which_gpus_they_have_are_named(ray_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "GPUS_S", 0.5)
    silent = ray_here.remote(Silent).options(name="trainer-1", namespace="here", num_cpus=0).remote()
    with pytest.raises(TimeoutError, match="trainer-1: which GPUs these have they have not said"):
        actors.see_gpus_of([("trainer-1", "here")])
    ray_here.kill(silent)
