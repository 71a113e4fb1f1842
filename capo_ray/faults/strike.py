"""One fault: done at its moment, and what came of it, second by second.

Leaves out which comes next (plan) and what is kept of it (record).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic

from capo_ray.faults import world
from capo_ray.faults.kinds import Kind, Moment
from capo_ray.faults.orphans import names_of
from capo_ray.faults.plan import Fault
from capo_ray.faults.processes import all_of, slow
from capo_ray.faults.subject import STEP, Ended, Subject, newest, steps_of

STARTS_S = 300.0
"""For a run to start, on a busy machine, and make two steps."""
MOMENT_S = 0.03
"""That a sync or a save of a tiny policy takes, about."""
ENDED = r"it is ended|was lost: |died|^error: "
"""Said where somebody is lost or ended."""
Note = tuple[str, tuple[str, ...]]
"""What is to be said of a fault, and why it was none."""


class NoTarget(RuntimeError):
    """There is no such process just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one fault."""

    noticed_s: float | None
    """Until the line that names it; None: there is to be none, or there was none."""
    recovered_s: float | None
    """Until two further steps."""
    said: tuple[str, ...]
    """What the run had to say meanwhile."""
    failures: tuple[str, ...]
    """Promises that were not kept."""


def calm(subject: Subject, *, steps: int = 2, within_s: float = STARTS_S) -> None:
    """Wait for so many further steps. Raises Ended."""
    if subject.until(f"^{STEP}", since=len(subject.lines), within_s=within_s, count=steps) is None:
        raise Ended(f"no {steps} steps in {within_s:g} s: {subject.last_words()}")


def strike(subject: Subject, fault: Fault, memory: world.Memory | None = None) -> Tried:
    """On a run that makes steps. Where the fault ends it, the run has ended. Raises NoTarget, and Ended where the run
    was not to end."""
    kind = fault.kind
    _await_moment(subject, kind.moment, fault.delay)
    before, since, begun = newest(subject.run_dir), len(subject.lines), monotonic()
    with doing(subject, fault, memory) as during:
        if kind.then == "is borne":
            time.sleep(kind.lasts_s)
            note, failures = during()
        elif kind.then == "ends":
            return _ends(subject, kind, since, begun)
        else:
            noticed = subject.until(kind.says, since=since, within_s=kind.noticed_s)
            time.sleep(max(0.0, begun + kind.lasts_s - monotonic()) if kind.lasts_s else 0.0)
    if kind.then == "is borne":
        return _borne(subject, kind, since, begun, note, failures)
    return _goes_on(subject, kind, since, begun, noticed, before)


def _goes_on(
    subject: Subject, kind: Kind, since: int, begun: float, noticed: float | None, before: Mapping[str, float]
) -> Tried:
    failures = [] if noticed else [f"nothing said it within {kind.noticed_s:g} s"]
    left = begun + kind.recovered_s - monotonic()
    after = next((number for number, (at, _) in enumerate(subject.lines) if at >= (noticed or begun)), since)
    recovered = subject.until(f"^{STEP}", since=after, within_s=max(left, 0.0), count=2)
    if recovered is None:
        failures.append(f"no two steps within {kind.recovered_s:g} s")
        calm(subject, within_s=STARTS_S)
    if kind.metrics and not _grew(kind.metrics, before, steps_of(subject.run_dir)):
        failures.append(f"none of {', '.join(kind.metrics)} grew")
    return Tried(
        noticed_s=None if noticed is None else noticed - begun,
        recovered_s=None if recovered is None else recovered - begun,
        said=tuple(said := subject.words(since)),
        failures=(*failures, *(f"said {line[:200]}" for line in said if "Traceback" in line)),
    )


def _grew(names: Sequence[str], before: Mapping[str, float], steps: Sequence[Mapping[str, float]]) -> bool:
    """From a step to the next: some count since the run began, some of one step alone, which is over two steps on."""
    since = [before, *(step for step in steps if step["step"] >= before.get("step", 0))]
    return any(later.get(name, 0.0) > earlier.get(name, 0.0) for name in names for earlier, later in pairwise(since))


def _borne(subject: Subject, kind: Kind, since: int, begun: float, note: str, failures: tuple[str, ...]) -> Tried:
    """It is over."""
    recovered = subject.until(f"^{STEP}", since=len(subject.lines), within_s=kind.recovered_s, count=2)
    said = subject.words(since)
    failures += tuple(f"said {line[:200]}" for line in said if re.search(ENDED, line))
    failures += () if recovered else (f"no two steps within {kind.recovered_s:g} s of its end",)
    return Tried(
        noticed_s=None,
        recovered_s=None if recovered is None else recovered - begun,
        said=(*said, *([note] if note else [])),
        failures=failures,
    )


def _ends(subject: Subject, kind: Kind, since: int, begun: float) -> Tried:
    noticed, failures = None, []
    try:
        noticed = subject.until(kind.says, since=since, within_s=kind.noticed_s)
    except Ended:
        failures.append("it ended without a line that says why")
    if not subject.ends(within_s=60):
        failures.append("it did not end within a minute of its error")
        subject.kill()
    elif subject.process.returncode != 1:
        failures.append(f"its exit code is {subject.process.returncode}")
    said = subject.words(since)
    if noticed is None and not failures:
        failures.append(f"nothing said it within {kind.noticed_s:g} s")
    failures += [f"said {line[:200]}" for line in said if "Traceback" in line]
    if left := names_of(subject.orphans.left()):
        failures.append(f"{len(left)} processes are left: {', '.join(left)[:200]}")
    return Tried(
        noticed_s=None if noticed is None else noticed - begun,
        recovered_s=None,
        said=tuple(said),
        failures=tuple(failures),
    )


@contextmanager
def doing(subject: Subject, fault: Fault, memory: world.Memory | None) -> Iterator[Callable[[], Note]]:
    """The fault, for as long as this lasts where it can be taken back; what there is to say of it by its end."""
    kind = fault.kind
    with ExitStack() as undo:
        note: Callable[[], Note] = lambda: ("", ())  # noqa: E731
        if kind.act in ("kill", "freeze", "slow"):
            chains = all_of(subject.pid, *kind.target)
            if not chains:
                raise NoTarget(" below ".join(reversed(kind.target)))
            process = chains[int(fault.which * len(chains))][-1]
            if kind.act == "slow":
                undo.enter_context(slow(process))
            else:
                process.kill() if kind.act == "kill" else process.suspend()
        elif kind.act == "fill the disk":
            undo.enter_context(world.full(subject.run_dir))
        elif kind.act == "make read-only":
            undo.enter_context(world.read_only(subject.run_dir / kind.target[0]))
        elif kind.act == "cut":
            undo.enter_context(world.no_network())
        elif kind.act == "drop packets":
            undo.enter_context(world.lost_packets())
            note = _packets
        else:
            assert memory is not None
            undo.enter_context(memory.taken())
        yield note


def _packets() -> Note:
    """Where none was dropped nothing was borne."""
    dropped = world.dropped_packets()
    return f"({dropped} packets dropped)", () if dropped else ("no packet was dropped, so nothing was tried",)


def _await_moment(subject: Subject, moment: Moment, delay: float) -> None:
    """The next one. Raises Ended."""
    since = len(subject.lines)
    if moment == "step":
        if subject.until(f"^{STEP}", since=since, within_s=STARTS_S) is None:
            raise Ended(f"no step in {STARTS_S:g} s: {subject.last_words()}")
        time.sleep(delay * _step_s(subject))
        return
    folder, names = {
        "sync": (Path("/dev/shm"), "capo_ray-weights-*"),
        "save": (subject.run_dir / "checkpoints", ".partial*"),
    }[moment]
    deadline, old = monotonic() + STARTS_S, _numbers(folder, names)  # some were left by who was killed
    while not _numbers(folder, names) - old:
        if subject.process.poll() is not None:
            raise Ended(f"the run ended: {subject.last_words()}")
        if monotonic() > deadline:
            raise Ended(f"no {moment} in {STARTS_S:g} s")
        time.sleep(0.001)
    time.sleep(delay * MOMENT_S)


def _numbers(folder: Path, names: str) -> set[int]:
    """Of the system, for folders that are there."""
    found = set()
    for path in folder.glob(names):
        with suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def _step_s(subject: Subject) -> float:
    """Of the last ones, without those that had to wait."""
    times = [at for at, line in subject.lines if line.startswith(STEP)][-8:]
    return median([later - earlier for earlier, later in pairwise(times)] or [1.0])
