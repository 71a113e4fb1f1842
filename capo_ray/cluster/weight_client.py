"""The trainer's line to the rollout workers while weights move: vLLM's four calls, to all workers at once.

Every wait has an end, and a worker that does not answer is named. Leaves out what is sent (engines.weights_*).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError


class RaySyncClient:
    """See engines.weights.SyncClient. Calls block, so it lives in the trainer's process, not in the driver's loop."""

    def __init__(self, handles: Sequence[Any], *, patience_s: float = 600.0) -> None:
        self._handles = list(handles)
        self._patience_s = patience_s

    def _all(self, what: str, *arguments: Any) -> list[Any]:
        calls = [getattr(handle, what).remote(*arguments) for handle in self._handles]
        try:
            return ray.get(calls, timeout=self._patience_s)
        except GetTimeoutError:
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            late = [number for number, call in enumerate(calls) if call not in done]
            raise TimeoutError(
                f"weight sync: rollout workers {late} did not answer {what} within {self._patience_s:g} s; "
                "their logs say what they wait for"
            ) from None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._all("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", int(weight_version or 0))

    def checksums(self) -> list[tuple[str, int, str]]:
        return [(receipt.engine, receipt.version, receipt.checksum) for receipt in self._all("receipt")]
