"""Groups of gloo that share one loop.

Each group of torch's has by itself a thread that waits for its connections, and gloo's wakes up a hundred times a
second whether something comes or not. vLLM makes thirteen groups for an engine on a CPU, of one rank too. Leaves out
who is in a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo, Store, distributed_c10d


@contextmanager
def one_loop() -> Iterator[None]:
    """Groups that are made inside share the loop of the first of them."""
    shared: list[Any] = []

    class OfOneLoop(ProcessGroupGloo):
        def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
            if not shared:
                super().__init__(store, rank, size, timeout=timeout)
                shared.extend(self.options._devices)
                return
            options = ProcessGroupGloo._Options()
            options._devices, options._threads, options._timeout = shared, 2 * len(shared), timeout
            super().__init__(store, rank, size, options)

    before = distributed_c10d.ProcessGroupGloo
    distributed_c10d.ProcessGroupGloo = OfOneLoop
    try:
        yield
    finally:
        distributed_c10d.ProcessGroupGloo = before
