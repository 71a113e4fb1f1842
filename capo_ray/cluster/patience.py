"""Waiting that says what it waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

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


async def _await(awaited: Awaitable[Any]) -> Any:
    return await awaited
