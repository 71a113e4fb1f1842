"""A crew that is lost is hired again; whatever else goes wrong is not, and a loss one too many is the run's end."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, OwnerDiedError, RayTaskError

from capo_ray.cluster.faults import MustMove, NotEnough, cause_of, is_loss
from capo_ray.cluster.restarts import outlive
from capo_ray.critics.service import CriticsFailed
from capo_ray.engines.receivers import ReceiverFailed
from capo_ray.training.driver import StaleSample, train
from capo_ray.types import Batch, GroupSummary, Metrics, Update

GONE = OwnerDiedError("ab" * 28, "", "")


def in_an_actor(cause: Exception) -> Exception:
    """As Ray raises it where an actor's method raised `cause`."""
    return RayTaskError("score", "the actor's traceback", cause).as_instanceof_cause()


@dataclass
class Run:
    """What outlives a crew, and the crews: weights are an integer to which each step adds its number, plus one."""

    losses: list[tuple[str, int, Exception]]
    """(method, step, error): what crews meet, each once, in this order."""
    disk: dict[int, int] = field(default_factory=dict)
    metrics: dict[int, int] = field(default_factory=dict)
    hired: int = 0
    dismissed: int = 0
    refused: int = 0
    """How often there is no room for a crew after the first one."""
    restarts: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def hire(self) -> AsyncIterator[Crew]:
        assert self.hired == self.dismissed, "the old crew is still there"
        if self.hired and self.refused:
            self.refused -= 1
            raise NotEnough("this run needs 2 GPU (there are 1)")
        self.hired += 1
        try:
            yield Crew(self)
        finally:
            self.dismissed += 1

    def go(self, *, max_restarts: int = 3, room_within_s: float = 0.0) -> None:
        async def work(crew: Crew) -> None:
            await train(crew, steps=5, max_staleness=0, checkpoint_every=2)

        asyncio.run(
            outlive(
                self.hire,
                work,
                max_restarts=max_restarts,
                on_restart=self.restarts.append,
                saved=lambda: max(self.disk, default=0),
                room_within_s=room_within_s,
                look_s=0.01,
            )
        )


class Crew:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._weights = 0

    def _meet(self, method: str, step: int) -> None:
        if self._run.losses and self._run.losses[0][:2] == (method, step):
            raise self._run.losses.pop(0)[2]

    async def restore(self) -> int:
        step = max(self._run.disk, default=0)
        self._weights = self._run.disk.get(step, 0)
        self._run.metrics = {s: value for s, value in self._run.metrics.items() if s <= step}
        return step

    async def collect(self, step: int) -> Batch:
        self._meet("collect", step)
        group = GroupSummary(
            prompt_id="p",
            prompt_tokens=1,
            lengths=(2, 2),
            oldest_version=step - 1,
            has_credit=True,
            tally={},
            handle=None,
        )
        return Batch(step=step, groups=(group,), seconds=0.0)

    async def update(self, batch: Batch) -> Update:
        self._meet("update", batch.step)
        self._weights += batch.step
        return Update(metrics={}, version=batch.step)

    async def sync(self, version: int) -> None:
        self._meet("sync", version)

    async def evaluate(self, step: int) -> None: ...

    async def record(self, batch: Batch, update: Update, seconds: Metrics) -> None:
        self._run.metrics[batch.step] = self._weights

    async def save(self, step: int) -> None:
        self._meet("save", step)
        self._run.disk[step] = self._weights

    async def export(self, step: int) -> None: ...


UNDISTURBED = {1: 1, 2: 3, 3: 6, 4: 10, 5: 15}


def test_an_undisturbed_run_is_hired_for_once() -> None:
    run = Run([])
    run.go()
    assert (run.metrics, run.hired, run.restarts) == (UNDISTURBED, 1, [])


@pytest.mark.parametrize("where", ["collect", "update", "sync", "save"])
def test_a_loss_leads_back_to_the_checkpoint_and_to_the_same_numbers(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run([(where, 4, ActorDiedError())])
    run.go()
    assert (run.metrics, run.hired, run.dismissed, run.restarts) == (UNDISTURBED, 2, 2, [1])
    assert caplog.messages == [
        "an actor was lost: The actor died unexpectedly before finishing this task. Everything is started again from "
        "the newest checkpoint (restart 1, at most 3 without a new checkpoint: cluster.max_restarts)"
    ]


def test_a_loss_before_the_first_checkpoint_leads_back_to_the_start() -> None:
    run = Run([("update", 2, ActorDiedError()), ("update", 1, GONE)])
    run.go()
    assert (run.metrics, run.restarts) == (UNDISTURBED, [1, 2])


def test_one_loss_too_many_ends_the_run() -> None:
    run = Run([("update", 3, ActorDiedError())] * 3)
    with pytest.raises(ActorDiedError):
        run.go(max_restarts=2)
    assert run.restarts == [1, 2] and run.hired == run.dismissed == 3
    none = Run([("update", 3, ActorDiedError())])
    with pytest.raises(ActorDiedError):
        none.go(max_restarts=0)
    assert none.hired == 1


def test_losses_that_cost_no_checkpoint_are_no_row() -> None:
    """A run of weeks meets more of them than any run may in a row."""
    run = Run([("update", step, ActorDiedError()) for step in (2, 4, 4, 5, 5)])
    run.go(max_restarts=2)
    assert (run.metrics, run.restarts) == (UNDISTURBED, [1, 2, 3, 4, 5])


def test_machines_that_are_told_to_go_are_left_however_often(caplog: pytest.LogCaptureFixture) -> None:
    run = Run([("update", 3, MustMove("10.0.0.7 is told to go within 20 s"))] * 5, refused=1)
    run.go(max_restarts=0, room_within_s=60)
    assert (run.metrics, run.restarts, run.refused) == (UNDISTURBED, [1, 2, 3, 4, 5], 0)
    said = "10.0.0.7 is told to go within 20 s. Everything is started again elsewhere, from the newest checkpoint"
    assert caplog.messages.count(said) == 5
    assert caplog.messages[1].startswith("waiting for the lost machine, or another, since 0 s")


def test_a_lost_machine_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    run = Run([("update", 3, ActorDiedError())], refused=3)
    run.go(room_within_s=60)
    assert (run.metrics, run.restarts, run.refused) == (UNDISTURBED, [1], 0)
    waits = [line for line in caplog.messages if line.startswith("waiting")]
    assert waits == ["waiting for the lost machine, or another, since 0 s: this run needs 2 GPU (there are 1)"] * 3


def test_one_that_does_not_come_back_ends_the_run_with_that_cause() -> None:
    run = Run([("update", 3, ActorDiedError())], refused=1000)
    with pytest.raises(NotEnough) as error:
        run.go(room_within_s=0.05)
    assert str(error.value) == (
        "a machine was lost, and none took its place within 0.05 s (cluster.node_wait_s): this run needs 2 GPU "
        "(there are 1)"
    )
    at_once = Run([("update", 3, ActorDiedError())], refused=1)
    with pytest.raises(NotEnough, match=r"^this run needs 2 GPU"):
        at_once.go()


@pytest.mark.parametrize(
    "error",
    [
        CriticsFailed("9 of the last 9 critiques failed"),
        StaleSample("prompt p was sampled by an old version"),
        ValueError("the data are odd"),
        in_an_actor(CriticsFailed("9 of the last 9 critiques failed")),
        in_an_actor(RuntimeError("rollout-0 confirms version 1")),
        ExceptionGroup("groups", [ActorDiedError(), CriticsFailed("9 of the last 9 critiques failed")]),
    ],
    ids=repr,
)
def test_nothing_but_a_loss_is_tried_again(error: Exception) -> None:
    run = Run([("collect", 2, error)])
    with pytest.raises(type(error)):
        run.go()
    assert run.hired == run.dismissed == 1 and run.restarts == []


def test_what_a_loss_is() -> None:
    died = ActorDiedError()
    losses = [died, ActorUnavailableError("gone", b"1" * 16), GONE, in_an_actor(died), in_an_actor(in_an_actor(GONE))]
    losses.append(in_an_actor(pickle.loads(pickle.dumps(ReceiverFailed("rollout-1 failed in update", died)))))
    assert "rollout-1" in cause_of(losses[-1])
    assert not is_loss(in_an_actor(ReceiverFailed("rollout-1 failed in update", ValueError("shape"))))
    losses.append(ExceptionGroup("groups", [died, ExceptionGroup("more", [GONE])]))
    assert all(map(is_loss, losses))
    assert cause_of(losses[-1]) == cause_of(died)


def test_a_lack_of_memory_is_said_in_two_lines() -> None:
    error = OutOfMemoryError("6 worker(s) were killed.\nMemory usage 24B exceeded 23B\nObject store [\n- spillable: 0")
    assert cause_of(error) == "OutOfMemoryError: 6 worker(s) were killed. Memory usage 24B exceeded 23B"


def test_interrupting_is_no_loss() -> None:
    async def interrupted() -> None:
        run = Run([])
        begun = asyncio.Event()

        async def work(crew: Crew) -> None:
            begun.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(outlive(run.hire, work, max_restarts=3, on_restart=run.restarts.append))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.hired == run.dismissed == 1

    asyncio.run(interrupted())
