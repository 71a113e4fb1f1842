"""Runs of the tiny world to which faults are done one after another, for so many minutes.

Leaves out one fault (strike) and what is made of all of them (table).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import monotonic

from capo_ray.faults import world
from capo_ray.faults.check import check
from capo_ray.faults.kinds import KINDS, Kind
from capo_ray.faults.plan import Fault, faults
from capo_ray.faults.record import Record
from capo_ray.faults.strike import STARTS_S, NoTarget, Tried, calm, strike
from capo_ray.faults.subject import Ended, Subject, launch
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.files.run_dir import RunDirError
from capo_ray.records.ledger import LedgerError

SETTINGS = (
    *("+experiment=tiny_cpu", "prompts_per_step=4", "responses_per_prompt=4", "trainer.responses_per_update=8"),
    *("data.evaluation_prompts=0", "tracking.wandb=offline", "steps=100000"),
    "stop_after_broken_steps=0",  # of 16 responses none may be right by chance
    "trainer.learning_rate=2.5e-5",  # at ten times that, 16 responses a step teach nonsense within 30 steps
    *("checkpoint_every=1", "keep_checkpoints=3", "critic.workers=2", "cluster.silence_s=40", "cluster.max_restarts=9"),
)
"""Small steps, a checkpoint after each, and two critics, so that one may be lost."""
SEEDS = 3
"""Of runs, in turn: those of one seed are compared."""
MEMORY_GIB = 16.0
"""Where memory is taken: what such a run is planned with is 14.4."""


class Soak:
    """One run and what is done to it; `sound` says whether every promise was kept."""

    def __init__(self, out: Path, overrides: Sequence[str], *, seed: int) -> None:
        """`seed` is that of the sequence of faults."""
        self._record = Record(out, seed=seed)
        self._overrides = overrides
        self._subject: Subject | None = None
        self._memory: world.Memory | None = None
        self._said: list[str] = []
        self._chosen: list[str] = []
        self.sound = True

    def try_all(self, kinds: Sequence[Kind], *, minutes: float, most: int | None) -> None:
        """Faults from where the folder's sequence ends, until `minutes` are over or `most` were tried. Without kinds a
        run is left alone, for others to be compared with."""
        begun, run_seed = monotonic(), self._record.turn(disturbed=bool(kinds)) % SEEDS
        settings = (*SETTINGS, f"seed={run_seed}", *self._overrides)
        run_dir = self._record.folder / "run"
        with ExitStack() as undo:
            undo.enter_context(world.disk(run_dir))
            if any(kind.act == "take memory" for kind in kinds):
                self._memory = _limited(undo)
            undo.enter_context(self._record.watching_memory(lambda: self._subject))
            undo.callback(self._end, run_dir, run_seed, begun)
            self._start(run_dir, settings)
            deadline = begun + 60 * minutes
            if not kinds:
                self._running.until("^$", since=1 << 30, within_s=max(0.0, deadline - monotonic()))
            if len(kinds) < len(KINDS):
                self._chosen = [kind.name for kind in kinds]
            start = self._record.tried(self._chosen)
            sequence = faults(kinds, seed=self._record.seed, start=start) if kinds else iter(())
            for fault in islice(sequence, most):
                if monotonic() > deadline:
                    break
                self._try(fault, run_dir, settings)

    @property
    def _running(self) -> Subject:
        assert self._subject is not None
        return self._subject

    def _start(self, run_dir: Path, settings: Sequence[str], *, resume: bool = False) -> float:
        """Seconds until it made two steps. Raises Ended."""
        begun = monotonic()
        self._subject = launch(run_dir, settings, resume=resume)
        if self._memory is not None:
            self._memory.holds(self._subject.pid)
        calm(self._subject, within_s=STARTS_S)
        return monotonic() - begun

    def _again(self, run_dir: Path, settings: Sequence[str]) -> float:
        """The program, from its newest checkpoint."""
        self._running.stop()
        self._said += [line for _, line in self._running.lines]
        return self._start(run_dir, settings, resume=True)

    def _try(self, fault: Fault, run_dir: Path, settings: Sequence[str]) -> None:
        if fault.kind.act == "take memory" and not (self._memory and self._memory.can_be_taken):
            why = "others on this machine need the memory" if self._memory else "there is no limit for it here"
            self._tell(fault, None, f"left out: {why}")
            return
        tried, failed = self._tried(fault, run_dir, settings)
        try:
            if failed or fault.kind.then == "ends":
                tried = self._resumed(tried, run_dir, settings)
        except Ended as error:
            tried = replace(tried, failures=(*tried.failures, f"it does not go on: {error}"))
            raise
        finally:
            self._record.fault(fault, tried, self._chosen)
            self._tell(fault, tried)

    def _tried(self, fault: Fault, run_dir: Path, settings: Sequence[str]) -> tuple[Tried, bool]:
        """What came of it, and whether the run ended by it, or stands still, and was not to."""
        try:
            try:
                return strike(self._running, fault, self._memory), False
            except NoTarget:  # wandb, which is given up for the rest of a program
                self._again(run_dir, settings)
                return strike(self._running, fault, self._memory), False
        except (Ended, NoTarget) as error:
            said = tuple(self._running.words(0)[-8:])
            return Tried(noticed_s=None, recovered_s=None, said=said, failures=(str(error),)), True

    def _resumed(self, tried: Tried, run_dir: Path, settings: Sequence[str]) -> Tried:
        """The checkpoints that were there stay, and the run goes on from the newest. Raises Ended."""
        before = Checkpoints(run_dir, keep=1).newest()
        seconds = self._again(run_dir, settings)
        broken = [line for line in self._running.words(0) if "is broken" in line]
        lost = [] if before is not None else ["no checkpoint is there"]
        return replace(tried, recovered_s=seconds, failures=(*tried.failures, *lost, *broken))

    def _tell(self, fault: Fault, tried: Tried | None, word: str = "") -> None:
        if tried is not None:
            self.sound = self.sound and not tried.failures
            times = (f"{name} {value:.0f} s" for name, value in _times(tried) if value is not None)
            word = ", ".join(times) + "".join(f"; BROKEN: {failure}" for failure in tried.failures)
        print(f"{fault.number:4d} {fault.kind.name}: {word}", flush=True)

    def _end(self, run_dir: Path, seed: int, begun: float) -> None:
        """Stop the run, look at its files, and keep what is to be kept."""
        if self._subject is None:
            return
        failures = [] if self._subject.stop() else [f"Ctrl-C did not end it with 130: {self._subject.last_words()}"]
        self._said += [line for _, line in self._subject.lines]
        self._subject = None
        try:
            checked = check(run_dir)
        except (LedgerError, RunDirError) as error:
            print(f"the run cannot be checked: {error}", file=sys.stderr)
            self.sound = False
        else:
            failures += checked.findings
            self._record.ended(checked, run_dir, seed=seed, failures=failures, seconds=monotonic() - begun)
            print(f"run {self._record.run}: {checked.steps} steps, {checked.responses} responses", flush=True)
        for failure in failures:
            print(f"BROKEN: {failure}", flush=True)
        self.sound = self.sound and not failures
        self._record.keep(run_dir, self._said, whole=not self.sound)


def _limited(undo: ExitStack) -> world.Memory | None:
    """None, with a word, where this machine has no such thing: the faults that need it are left out."""
    try:
        memory = world.Memory(gib=MEMORY_GIB)
    except OSError as error:
        print(f"no memory can be taken here: {error}", flush=True)
        return None
    undo.callback(memory.close)
    return memory


def _times(tried: Tried) -> tuple[tuple[str, float | None], ...]:
    return ("noticed", tried.noticed_s), ("two steps on", tried.recovered_s)
