"""Waiting that says what it waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import ActorUnavailableError

log = logging.getLogger(__name__)


async def with_patience(awaited: Awaitable[Any], what: str, *, patience_s: float = 30.0) -> Any:
    """Await a call or a Ray reference, and log `what` it is every `patience_s` seconds while it lasts."""
    waiting = asyncio.ensure_future(_await(awaited))
    waited = 0.0
    try:
        while not (await asyncio.wait((waiting,), timeout=patience_s))[0]:
            waited += patience_s
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


async def _await(awaited: Awaitable[Any]) -> Any:
    return await awaited
