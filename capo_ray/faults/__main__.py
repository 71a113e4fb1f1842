"""`python -m capo_ray.faults out=DIR minutes=60`: does a run keep its promises whatever is done to it?

Starts runs of the tiny world on the real stack and does one fault after another to them (`kinds`), in a world of their
own (`world`); each promise of the failure policy is looked at, and so are the run's files at its end (`check`). What
was seen adds up in DIR, and the same command goes on from there. Leaves out what is promised where (kinds).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from capo_ray.config.block import setting
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import beside_run
from capo_ray.config.own_settings import AnyPath, BesideRun, read_own
from capo_ray.faults import world
from capo_ray.faults.check import check
from capo_ray.faults.kinds import KINDS, Kind
from capo_ray.faults.soak import SETTINGS, Soak
from capo_ray.faults.subject import Ended
from capo_ray.faults.table import page, same_numbers
from capo_ray.files.durable import write_text
from capo_ray.files.run_dir import RunDirError
from capo_ray.leaving import leave
from capo_ray.program import FAILED, GOES_ON, OF_A_RUN, need, run_program
from capo_ray.records.ledger import LedgerError

USAGE = """usage: python -m capo_ray.faults out=DIR [key=value ...]

Does faults to runs of the tiny world and looks whether each promise of docs/architecture.md is kept. What was seen adds
up in DIR; the same command goes on from there. Settings of a run go to every run.

  python -m capo_ray.faults out=runs/soak minutes=60
  python -m capo_ray.faults out=runs/soak minutes=10 kinds=none     an undisturbed run, to compare with
  python -m capo_ray.faults out=runs/soak report=only               what was seen, as a page
  python -m capo_ray.faults check=RUN_DIR        a run of yours: is no sample lost, stale, trained on twice?

Exit code 0, 1 where a promise was broken, 2 where it cannot be tried here.
"""


MARKS = ("<!-- faults -->", "<!-- end of faults -->")


class Asked(BesideRun):
    """Of this program."""

    out: AnyPath | None = setting("folder of what was seen; the page is OUT/report.md", None)
    minutes: float = setting("after which no other fault is begun", 60.0, unit="min", gt=0, le=90)
    faults: int | None = setting("at most so many; null: as many as there is time for", None, ge=1)
    seed: int = setting("of the order, the moments and the targets", 0, ge=0)
    kinds: tuple[str, ...] = setting("names or parts of names; empty: all; none: the run is left alone", ())
    report: Literal["only"] | None = setting("only: the page is written and nothing is tried", None)
    into: AnyPath | None = setting(
        f"a page that has the lines {MARKS[0]} and {MARKS[1]}: what was seen goes between", None
    )
    check: AnyPath | None = setting("a run's directory, whose files are looked at; nothing else is done", None)


def asked(arguments: Sequence[str]) -> Asked:
    """Raises ConfigError."""
    options = read_own(Asked, arguments)
    if options.check is None and options.out is None:
        raise ConfigError("out: must name a folder for what is seen, or check a run's directory")
    if options.check is not None:
        if beside := sorted({*options.model_fields_set, *options.overrides} - {"check", "overrides"}):
            raise ConfigError(f"check: looks at a run that was, and does nothing else; leave out {', '.join(beside)}")
        return options
    compose([*SETTINGS, *options.overrides])
    return options


def chosen(names: Sequence[str]) -> list[Kind]:
    """Raises ConfigError."""
    if not names:
        return list(KINDS.values())
    if list(names) == ["none"]:
        return []
    for name in names:
        if not any(name in known for known in KINDS):
            raise ConfigError(f"kinds: there is no {name[:80]!r}; take parts of: {', '.join(KINDS)}")
    return [kind for kind in KINDS.values() if any(name in kind.name for name in names)]


def work(arguments: list[str]) -> int:
    options = asked(arguments)
    if options.check is not None:
        return _check(options.check)
    assert options.out is not None
    kinds, out, sound = chosen(options.kinds), options.out.resolve(), True
    if not options.report:
        need(*OF_A_RUN)
        sound = _try(options, kinds, out, arguments)
    if not out.is_dir():
        raise ConfigError(f"out: {out} is no folder of faults that were tried")
    made = page(out)
    write_text(out / "report.md", made)
    if options.into is not None:
        write_text(options.into, put_between(options.into, made))
    print(f"\n{made}")
    return 0 if sound and not same_numbers(out)[1] else FAILED


def _try(options: Asked, kinds: Sequence[Kind], out: Path, arguments: Sequence[str]) -> bool:
    if why := world.why_not():
        raise ConfigError(f"out: faults need a disk and a network of their own, and there are none here: {why}")
    world.enter(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is deaf to it
    soak = Soak(out, options.overrides, seed=options.seed)
    soak.try_all(kinds, minutes=options.minutes, most=options.faults)
    return soak.sound


def put_between(path: Path, made: str) -> str:
    """The text of `path`, with `made` between the marks. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        before, rest = text.split(f"{MARKS[0]}\n")
        _, after = rest.split(MARKS[1])
    except (OSError, ValueError) as error:
        raise ConfigError(f"into: {path} has not the lines {MARKS[0]} and {MARKS[1]} once each") from error
    return f"{before}{MARKS[0]}\n\n{made}\n{MARKS[1]}{after}"


def _check(run_dir: Path) -> int:
    if not run_dir.is_dir():
        raise ConfigError(f"check: {run_dir} is no directory of a run")
    try:
        found = check(run_dir)
    except (LedgerError, RunDirError) as error:
        raise ConfigError(f"check: {error}") from error
    for finding in found.findings:
        print(finding)
    print(f"{found.steps} steps, {found.responses} responses, {found.trained_tokens} tokens trained on: ", end="")
    print(f"{len(found.findings)} findings; log-probabilities differ by {found.largest_gap:.1e} at most")
    return FAILED if found.findings else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=beside_run(Asked), failures=(Ended,), afterwards=GOES_ON)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
