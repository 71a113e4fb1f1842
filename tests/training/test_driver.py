"""The loop on a crew of a few integers: what is in flight when, what is never trained on, how it stops and goes on."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from capo_ray.cluster.gate import Gate
from capo_ray.training.driver import StaleSample, Stop, is_due, train
from capo_ray.types import Batch, GroupSummary, Metrics, Update

Event = tuple[Any, ...]


def group(
    version: int,
    handle: Any = None,
    *,
    lengths: tuple[int, ...] = (5, 6),
    has_credit: bool = True,
    prompt_id: str = "p",
) -> GroupSummary:
    return GroupSummary(
        prompt_id=prompt_id, prompt_tokens=3, lengths=lengths, oldest_version=version, has_credit=has_credit, tally={},
        handle=handle,
    )  # fmt: skip


@dataclass
class FakeCrew:
    """Weights are an integer; a batch holds what was sampled from them, an update mixes it into the trainer's."""

    disk: dict[int, int] = field(default_factory=dict)
    """Checkpoints: step -> the trainer's weights."""
    delay: Callable[[str, int], float] = lambda method, step: 0.0
    fail: dict[Event, Exception] = field(default_factory=dict)
    """(method, step) -> what it raises, once."""
    events: list[Event] = field(default_factory=list)
    lines: dict[int, tuple[int, Metrics]] = field(default_factory=dict)
    trained: int = 17
    served: int = 0
    version: int = -1
    sampling: set[int] = field(default_factory=set)
    gate: Gate = field(default_factory=Gate)

    async def restore(self) -> int:
        step = max(self.disk, default=0)
        self.trained = self.disk.get(step, 17)
        self.lines = {s: line for s, line in self.lines.items() if s <= step}
        return step

    async def collect(self, step: int) -> Batch:
        async with self.gate.shared():
            version, served = self.version, self.served
            self._note("collect", step, version)
            self.sampling.add(step)
            try:
                await asyncio.sleep(self.delay("collect", step))
                self._fail("sampling", step)
            finally:
                self.sampling.discard(step)
            assert (version, served) == (self.version, self.served), "weights moved while sampling"
        return self.batch(step, version, hash((step, served)))

    def batch(self, step: int, version: int, sample: int) -> Batch:
        return Batch(step=step, groups=(group(version, sample),), seconds=0.5)

    async def update(self, batch: Batch) -> Update:
        self._note("update", batch.step, sorted(self.sampling))
        await asyncio.sleep(self.delay("update", batch.step))
        self.trained = hash((self.trained, batch.groups[0].handle))
        return Update(metrics={"loss": float(self.trained)}, version=batch.step)

    async def sync(self, version: int) -> None:
        async with self.gate.exclusive():
            self._note("sync", version)
            await asyncio.sleep(self.delay("sync", version))
            self.served, self.version = self.trained, version

    async def evaluate(self, step: int) -> None:
        async with self.gate.shared():
            self._note("evaluate", step)
            assert self.version == step

    async def record(self, batch: Batch, update: Update, seconds: Metrics) -> None:
        self._note("record", batch.step)
        self.lines[batch.step] = (self.trained, seconds)

    async def save(self, step: int) -> None:
        self._note("save", step)
        self.disk[step] = self.trained

    async def export(self, step: int) -> None:
        self._note("export", step)

    def _note(self, method: str, step: int, *more: Any) -> None:
        self.events.append((method, step, *more))
        self._fail(method, step)

    def _fail(self, method: str, step: int) -> None:
        if error := self.fail.pop((method, step), None):
            raise error

    def of(self, method: str) -> list[Event]:
        return [event[1:] for event in self.events if event[0] == method]


def run(crew: FakeCrew, steps: int, max_staleness: int = 0, **every: float) -> FakeCrew:
    async def alone() -> None:
        try:
            async with asyncio.timeout(10):
                await train(crew, steps=steps, max_staleness=max_staleness, **every)
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}, "something was left in flight"
            assert not crew.sampling

    asyncio.run(alone())
    return crew


def jitter(seed: int) -> Callable[[str, int], float]:
    rng = random.Random(seed)
    return lambda method, step: rng.random() / 200


def test_the_order_of_a_run() -> None:
    crew = run(FakeCrew(), steps=2)
    assert crew.events == [
        ("sync", 0),
        ("evaluate", 0),
        ("collect", 1, 0),
        ("update", 1, []),
        ("sync", 1),
        ("record", 1),
        ("collect", 2, 1),
        ("update", 2, []),
        ("sync", 2),
        ("record", 2),
        ("save", 2),
        ("evaluate", 2),
    ]
    assert set(crew.lines[1][1]) == {"wait", "update", "sync", "step"}


@pytest.mark.parametrize(
    ("max_staleness", "versions"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (2, [0, 0, 0, 1, 2])]
)
def test_which_version_samples_which_step(max_staleness: int, versions: list[int]) -> None:
    """Step s is sampled k steps ahead, whatever takes how long."""
    for seed in range(5):
        crew = run(FakeCrew(delay=jitter(seed)), 5, max_staleness)
        assert crew.of("collect") == list(enumerate(versions, start=1))


@pytest.mark.parametrize(
    ("max_staleness", "beside"), [(0, [[], [], [], []]), (1, [[2], [3], [4], []]), (2, [[2, 3], [4], [], []])]
)
def test_what_is_in_flight_during_an_update(max_staleness: int, beside: list[list[int]]) -> None:
    """Slow batches after the first: those begun ahead are sampled while it is trained on; a sync waits for them."""
    crew = run(FakeCrew(delay=lambda method, step: 0.01 * (method == "collect" and step > 1)), 4, max_staleness)
    assert [in_flight for _, in_flight in crew.of("update")] == beside


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_stale_sample_is_never_trained_on(max_staleness: int) -> None:
    class Liar(FakeCrew):
        def batch(self, step: int, version: int, sample: int) -> Batch:
            dropped = group(-9, lengths=())  # nothing of it is trained on, so its age is nobody's concern
            old = group(version - (step == 4), sample, prompt_id="gsm8k/7")
            return Batch(step=step, groups=(dropped, group(step - 1, sample), old), seconds=0.0)

        async def update(self, batch: Batch) -> Update:
            self._note("update", batch.step)
            return Update(metrics={}, version=batch.step)

    crew = Liar()
    with pytest.raises(StaleSample) as error:
        run(crew, 6, max_staleness)
    assert str(error.value) == (
        f"prompt 'gsm8k/7' of step 4 was sampled by policy version {2 - max_staleness}, version 3 is trained now, "
        f"and max_staleness is {max_staleness}"
    )
    assert crew.of("update") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_results_do_not_depend_on_timing(max_staleness: int) -> None:
    calm = run(FakeCrew(), 6, max_staleness)
    for seed in range(5):
        hurried = run(FakeCrew(delay=jitter(seed)), 6, max_staleness)
        assert [line[0] for line in hurried.lines.values()] == [line[0] for line in calm.lines.values()]
        assert list(hurried.lines) == list(range(1, 7))


def test_a_resumed_run_is_the_run_that_never_stopped() -> None:
    whole = run(FakeCrew(), 4)
    first = run(FakeCrew(), 2)
    second = run(FakeCrew(disk=first.disk), 4)
    assert [line[0] for line in (first.lines | second.lines).values()] == [line[0] for line in whole.lines.values()]
    assert second.trained == whole.trained
    assert second.events[:2] == [("sync", 2), ("collect", 3, 2)]  # the evaluation before was made by the first run


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_train_again_goes_back_to_the_last_checkpoint(max_staleness: int) -> None:
    """A rollback: what was done since is done again, from the checkpoint's weights, and nothing in flight survives."""
    crew = FakeCrew(fail={("update", 4): RuntimeError("rank 1 died")})
    with pytest.raises(RuntimeError, match="rank 1 died"):
        run(crew, 5, max_staleness, checkpoint_every=2)
    crew.events.clear()
    run(crew, 5, max_staleness, checkpoint_every=2)
    assert crew.events[:2] == [("sync", 2), ("collect", 3, 2)]
    assert crew.of("update")[0][0] == 3 and list(crew.lines) == [1, 2, 3, 4, 5]
    if max_staleness == 0:
        assert crew.trained == run(FakeCrew(), 5).trained


@pytest.mark.parametrize("step", [2, 4])
def test_an_evaluation_that_failed_after_its_checkpoint_is_made_by_the_next_run(step: int) -> None:
    crew = FakeCrew(fail={("evaluate", step): RuntimeError("shard 0 died")})
    with pytest.raises(RuntimeError, match="shard 0 died"):
        run(crew, 4, checkpoint_every=2, evaluate_every=2)
    crew.events.clear()
    run(crew, 4, checkpoint_every=2, evaluate_every=2)
    assert crew.events[:2] == [("sync", step), ("evaluate", step)]
    assert crew.of("evaluate")[-1] == (4,)


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("where", ["sync", "collect", "sampling", "update", "record", "save", "evaluate"])
def test_a_failure_reaches_the_caller(where: str, max_staleness: int) -> None:
    """And ends what is in flight, see `run`."""
    crew = FakeCrew(fail={(where, 2): RuntimeError(f"{where} broke")}, delay=lambda method, step: 0.001)
    with pytest.raises(RuntimeError, match=f"^{where} broke$"):
        run(crew, 6, max_staleness, checkpoint_every=2, evaluate_every=2)
    assert max((step for (step, *_) in crew.of("record")), default=-1) <= 2


def test_a_failure_does_not_wait_for_what_is_in_flight() -> None:
    crew = FakeCrew(fail={("update", 1): RuntimeError("rank 0 died")})
    crew.delay = lambda method, step: 3600.0 * (method == "collect" and step > 1)
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run(crew, 4, max_staleness=2)


def test_a_failed_batch_is_heard_of_when_it_is_its_turn() -> None:
    crew = FakeCrew(fail={("collect", 2): RuntimeError("no critic is left")})
    with pytest.raises(RuntimeError, match="no critic is left"):
        run(crew, 4, max_staleness=1)
    assert crew.of("update") == [(1, [])]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("after", ["collect", "update", "sync", "record", "save", "evaluate"])
def test_cancelled(after: str, max_staleness: int) -> None:
    """Ctrl-C: wherever the loop stands, it ends, and what is in flight with it."""
    crew = FakeCrew(delay=lambda method, step: 0.002)

    async def interrupted() -> None:
        running = asyncio.create_task(
            train(crew, steps=1000, max_staleness=max_staleness, checkpoint_every=2, evaluate_every=2)
        )
        while len(crew.of(after)) < 2:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == {asyncio.current_task()} and not crew.sampling

    asyncio.run(interrupted())


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("during", ["collect", "update", "sync", "record", "evaluate"])
def test_told_to_stop_it_saves_what_is_trained(during: str, max_staleness: int) -> None:
    """What it samples is let go at once; a step that is being trained is finished. Resumed, the numbers are those of a
    run that nobody stopped."""
    crew = FakeCrew(delay=lambda method, step: 3600.0 if (method, during, step) == ("collect", "collect", 4) else 0.001)

    async def told() -> int:
        stop = Stop()
        training = asyncio.create_task(train(crew, steps=6, max_staleness=max_staleness, evaluate_every=1, stop=stop))
        while not any(event[:2] == (during, 3 + (during == "collect")) for event in crew.events):
            await asyncio.sleep(0)
        stop.ask()
        async with asyncio.timeout(10):
            return await training

    done = asyncio.run(told())
    assert done == len(crew.lines) == max(crew.disk) == crew.events[-1][1] and crew.events[-1][0] == "save"
    assert done < 6 and not crew.sampling
    if max_staleness == 0:
        crew.delay = lambda method, step: 0.0
        kept = dict(crew.lines)
        run(crew, 6)
        undisturbed = run(FakeCrew(), 6)
        assert {s: line[0] for s, line in (kept | crew.lines).items()} == {
            s: line[0] for s, line in undisturbed.lines.items()
        }


@pytest.mark.parametrize(("within_s", "done"), [(None, 4), (60.0, 4), (0.05, 3)])
def test_with_time_the_step_at_hand_is_finished_and_no_other(within_s: float | None, done: int) -> None:
    """As where a machine is told to go: what is not sampled in its share of the time is left."""
    crew = FakeCrew(delay=lambda method, step: 0.5 if (method, step) == ("collect", 4) else 0.0)

    async def told() -> tuple[int, bool]:
        stop = Stop()
        training = asyncio.create_task(train(crew, steps=6, max_staleness=0, evaluate_every=1, stop=stop))
        while not any(event[:2] == ("collect", 4) for event in crew.events):
            await asyncio.sleep(0)
        stop.ask(within_s=within_s, for_good=False)
        async with asyncio.timeout(10):
            return await training, stop.for_good

    assert asyncio.run(told()) == (done, False)
    assert max(crew.disk) == done == len(crew.lines) and crew.events[-1][0] == "save"


def test_a_stop_that_comes_after_a_checkpoint_writes_no_other() -> None:
    crew = FakeCrew()

    async def told() -> int:
        stop = Stop()
        training = asyncio.create_task(train(crew, steps=6, max_staleness=0, checkpoint_every=2, stop=stop))
        while crew.of("save") != [(2,)]:
            await asyncio.sleep(0)
        stop.ask()
        return await training

    assert asyncio.run(told()) == 2 and crew.of("save") == [(2,)]


def test_the_age_of_the_last_checkpoint_is_a_reason_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr("capo_ray.training.driver.monotonic", lambda: float(next(now)))
    crew = run(FakeCrew(), 6, checkpoint_s=90)  # a step looks at the clock five times, or four
    assert crew.of("save") == [(2,), (4,), (6,)]


@pytest.mark.parametrize(("every", "saves"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_when_it_saves_and_evaluates(every: int, saves: list[int]) -> None:
    crew = run(FakeCrew(), 5, checkpoint_every=every, evaluate_every=every)
    assert crew.of("save") == [(step,) for step in saves]
    assert crew.of("evaluate") == [(step,) for step in (0, *saves)]
    assert [step for step in range(1, 6) if is_due(step, every, 5)] == saves


@pytest.mark.parametrize(("every", "exports"), [(0, []), (2, [2, 4]), (5, [5])])
def test_when_it_exports(every: int, exports: list[int]) -> None:
    """After the checkpoint of the step, if there is one."""
    crew = run(FakeCrew(), 5, checkpoint_every=1, export_every=every)
    assert crew.of("export") == [(step,) for step in exports]
    order = [event[:2] for event in crew.events]
    assert all(order.index(("export", step)) == order.index(("save", step)) + 1 for step in exports)


@pytest.mark.parametrize("done", [3, 7])
def test_a_run_that_is_done_says_so(done: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        crew = run(FakeCrew(disk={done: 1}), 3)
    assert crew.of("collect") == crew.of("save") == []
    assert crew.of("evaluate") == [(3,)] * (done == 3)
    assert caplog.messages == ["all 3 steps were done before; nothing is left to train. Set steps higher to go on"]


def test_a_step_without_credit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Flat(FakeCrew):
        def batch(self, step: int, version: int, sample: int) -> Batch:
            dropped = group(version, lengths=())
            return Batch(step=step, groups=(group(version, sample, has_credit=step != 2), dropped), seconds=0.0)

    with caplog.at_level(logging.WARNING):
        run(Flat(), 3)
    assert caplog.messages == ["step 2: no token of any response has an advantage; it teaches nothing"]
