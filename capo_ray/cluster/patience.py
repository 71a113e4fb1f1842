"""Waiting that says what it waits for, and waiting that ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from ray.exceptions import ActorUnavailableError

log = logging.getLogger(__name__)

END_S = 6 * 3600.0
"""More than the slowest storage needs for the largest model, than a cluster takes to grow, and than any call of a rank
takes. What ranks wait for among themselves ends before: see process_group.COLLECTIVE."""


async def with_patience(awaited: Awaitable[Any], what: str, *, patience_s: float = 30.0, end_s: float = END_S) -> Any:
    """Await a call or a Ray reference, and log `what` it is every `patience_s` seconds while it lasts; raises
    TimeoutError after `end_s`."""
    waiting = asyncio.ensure_future(_await(awaited))
    waited = 0.0
    try:
        while not (await asyncio.wait((waiting,), timeout=patience_s))[0]:
            waited += patience_s
            if waited >= end_s:
                raise TimeoutError(f"waited in vain for {what}, {waited:.0f} s; logs/ says what it was doing")
            log.warning("waiting for %s since %.0f s", what, waited)
        return waiting.result()
    finally:
        waiting.cancel()


async def when_up(actor: Any, what: str) -> Any:
    """What `actor.ready` returns, once Ray has started the actor again. Raises ActorDiedError when it will not."""

    async def ask() -> Any:
        while True:
            try:
                return await actor.ready.remote()
            except ActorUnavailableError:  # it is being started again
                await asyncio.sleep(0.5)

    return await with_patience(ask(), what)


def beside(call: Callable[[], object]) -> Future[object]:
    """What becomes of `call`, on a thread of its own that nobody has to wait for."""
    outcome: Future[object] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:
            outcome.set_exception(error)

    Thread(target=work, daemon=True, name="bounded call").start()
    return outcome


def ends_within(seconds: float, call: Callable[[], object]) -> bool:
    """Call, and wait `seconds` at most; whether it ended. For what Ray is asked at the end of a run: a signal to the
    whole process group kills the head first, which Ray then looks for for as long as it may.

    Raises what the call raises.
    """
    outcome = beside(call)
    wait((outcome,), seconds)
    if not outcome.done():
        return False
    outcome.result()
    return True


async def _await(awaited: Awaitable[Any]) -> Any:
    return await awaited
