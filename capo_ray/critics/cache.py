"""Critiques of responses that were judged before, so that an equal response under the same critics is not judged again.

Results must not depend on what happens to be kept. So where a cache is used the seed of critiques comes from what the
critic is shown (see `service`): an equal response would be given the same critiques again, and whether it was found, or
fell out, or was lost with its process changes only the cost. Leaves out what may be kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from weakref import WeakValueDictionary

from capo_ray.types import Critique


class CritiqueCache:
    """Keeps `size` responses' critiques; the least recently used go first. Size 0 keeps nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, tuple[Critique, ...]] = OrderedDict()
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def turn(self, key: Hashable) -> AbstractAsyncContextManager[object]:
        """Held while `key` is looked up and judged, so that equal responses in flight are judged once."""
        return self._turns.setdefault(key, asyncio.Lock()) if self._size else nullcontext()

    def find(self, key: Hashable) -> tuple[Critique, ...] | None:
        """What was kept under `key`, marked as such; nothing was generated for it."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        kept = self._kept[key]
        return tuple(replace(made, cached=True, num_tokens=0, kept_tokens=made.num_tokens) for made in kept)

    def keep(self, key: Hashable, critiques: tuple[Critique, ...]) -> None:
        if self._size:
            self._kept[key] = critiques
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
