"""Who receives the weights, as the trainer sees it: how many engines, which ranks each has, what each confirmed.

vLLM's trainer engines call it as their client, with one call for all engines; each is told its own ranks. Every wait
ends: an engine that fails or dies is named at once, one that does not answer after `patience_s`, and a wait that lasts
is logged. Leaves out how an engine is reached (cluster.weight_line) and what is sent (weights_shm, weights_gpu).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

from capo_ray.engines.protocols import Stage, WeightReceipt

log = logging.getLogger(__name__)

Ask = Callable[[Stage, dict[str, Any]], "Future[WeightReceipt | None]"]
"""Calls `RolloutEngine.take_weights` of one engine, wherever it is."""
RENDEZVOUS_S = 240.0
"""At most; vLLM's own store gives up after 300 s, and cannot say who is missing."""
T = TypeVar("T")


class WeightMismatch(RuntimeError):
    """An engine holds other weights than the trainer sent."""


class ReceiverFailed(RuntimeError):
    """An engine failed or died while it was to take weights; `cause` is its own error."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message, cause)
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[0])


class Receivers:
    """Every engine that samples from the policy. Calls block."""

    def __init__(
        self,
        engines: Mapping[str, Ask],
        *,
        gpus_each: int,
        patience_s: float = 600.0,
        word_s: float = 30.0,
        grace_s: float = 10.0,
    ) -> None:
        """`gpus_each`: processes of one engine that take weights (its tensor parallel size). A wait is logged every
        `word_s`. `grace_s`: as long after a broken connection an engine may be heard of that broke it."""
        self._engines = dict(engines)
        self._gpus_each = gpus_each
        self._patience_s, self._word_s, self._grace_s = patience_s, word_s, grace_s
        self._receipts: Sequence[WeightReceipt] = ()
        self._fault: Future[Exception] = Future()
        self._asking, self._answered = False, monotonic()
        self.version = 0
        """Of the sync under way: vLLM's trainer engines end one without naming it."""

    @property
    def world_size(self) -> int:
        """Of the group that weights are broadcast in: the trainer's rank 0, then every GPU of every engine."""
        return 1 + len(self._engines) * self._gpus_each

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """vLLM gives one rank offset for all engines, as if they were one; each gets its own.

        In a rendezvous all wait for one that is missing, so they are greeted first: who does not answer is named alone.
        """
        self._all("greet", [{}] * len(self._engines))
        own = [
            {**init_info, "rank_offset": offset} if "rank_offset" in init_info else init_info
            for offset in range(1, self.world_size, self._gpus_each)
        ]
        self._all("connect", own)

    def start_weight_update(self) -> None:
        self._all("start", [{}] * len(self._engines))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all("update", [update_info] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._receipts = self._all("finish", [{"version": self.version}] * len(self._engines))

    def confirm(self, checksum: str) -> str:
        """Returns `checksum`; raises WeightMismatch unless every engine confirmed it with the version of this sync."""
        for receipt in self._receipts:
            if (receipt.version, receipt.checksum) != (self.version, checksum):
                raise WeightMismatch(
                    f"{receipt.engine} confirms version {receipt.version} with checksum {receipt.checksum}, but "
                    f"version {self.version} with checksum {checksum} was sent: its responses would come from other "
                    "weights. Stop and look at its log."
                )
        return checksum

    def during(self, work: Callable[[], T], what: str) -> T:
        """Do `work`, which calls this object, and raise what it raises or an engine's fault, whichever comes first.

        A broadcast whose peer is gone never returns: `work` has a thread of its own, which is left behind then.
        """
        self._fault, self._answered = Future(), monotonic()
        outcome = _in_thread(work)
        either: tuple[Future[Any], ...] = (outcome, self._fault)
        while not wait(either, self._word_s, FIRST_COMPLETED).done:
            if self._asking:
                continue  # that wait has its own words and end
            waited = monotonic() - self._answered
            if waited > self._patience_s:
                raise TimeoutError(
                    f"weight sync: {what} did not end within {self._patience_s:g} s after the last answer of a rollout "
                    "worker; the log of trainer rank 0 says what it waits for"
                )
            log.warning("weight sync: waiting for %s since %.0f s", what, waited)
        if not self._fault.done() and outcome.exception() is not None:
            wait((self._fault,), self._grace_s)
        if self._fault.done():
            raise self._fault.result()
        return outcome.result()

    def _all(self, stage: Stage, given: Sequence[dict[str, Any]]) -> list[Any]:
        self._asking = True
        try:
            return self._answers(stage, given)
        except Exception as error:
            if not self._fault.done():
                self._fault.set_result(error)
            raise
        finally:
            self._asking, self._answered = False, monotonic()

    def _answers(self, stage: Stage, given: Sequence[dict[str, Any]]) -> list[Any]:
        calls = {ask(stage, one): name for (name, ask), one in zip(self._engines.items(), given, strict=True)}
        start, patience = (
            monotonic(),
            min(self._patience_s, RENDEZVOUS_S if stage in ("greet", "connect") else math.inf),
        )
        while True:
            done, late = wait(calls, min(self._word_s, patience), FIRST_EXCEPTION)
            for call in done:
                if (fault := call.exception()) is not None:
                    raise ReceiverFailed(f"weight sync: {calls[call]} failed in {stage}: {fault}", fault)
            if not late:
                return [call.result() for call in calls]
            waited, names = monotonic() - start, ", ".join(name for call, name in calls.items() if call in late)
            if waited > patience:
                raise TimeoutError(
                    f"weight sync: {names} did not answer {stage} within {patience:g} s; "
                    "their logs say what they wait for"
                )
            log.warning("weight sync: waiting for %s to answer %s since %.0f s", names, stage, waited)


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Not of a pool: those are waited for when the process ends."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True, name="weight sync").start()
    return outcome
