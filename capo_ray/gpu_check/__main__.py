"""`python -m capo_ray.gpu_check`: does it work on this card, and how fast; for a quarter of an hour.

Each part has a process, a limit and a log of its own, and one that fails stops no other. Needs no network and no model.
Leaves out whether an experiment fits (`capo_ray.doctor`, `dry_run=true`), and machines with more than one card but for
`nccl` between two.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from capo_ray.config.block import Block, setting
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.doctor.gpus import gpus_here
from capo_ray.gpu_check.notes import Device
from capo_ray.gpu_check.report import as_json, good, measured_gpu, nothing_measured, paragraph, table
from capo_ray.gpu_check.watching import Outcome, Part, interrupted, not_reached, run_part
from capo_ray.program import FAILED, run_program

USAGE = """usage: python -m capo_ray.gpu_check [key=value ...]

Does it work on this card, and how fast? A quarter of an hour at most, no network, no model to download. `out` gets
report.json, report.md and a folder with a log for each part.

  python -m capo_ray.gpu_check parts=here,ipc
  python -m capo_ray.gpu_check device=cpu     the same code with tiny shapes: a trial that measures no GPU

Exit code 0 when every part is ok or cannot be done here, 1 when one is not, 2 when there is no GPU.
"""
MINUTES = {"gpu": 15.0, "cpu": 60.0}
CPU_PATIENCE = 4.0
"""A limit on CPU is so many times that on a GPU: two cores start vLLM in a minute."""


def _part(name: str, what: str, limit_s: float, module: str, function: str = "work", **options: str) -> Part:
    module = f"capo_ray.gpu_check.{module}"
    return Part(name=name, what=what, module=module, function=function, limit_s=limit_s, options=options)


PARTS = (
    _part("here", "what is here", 60, "here"),
    _part("train_0.5B", "trainer step of 0.5B", 70, "training", model="0.5B"),
    _part("train_1B", "trainer step of 1B", 80, "training", model="1B"),
    _part("ipc", "weights over `ipc`", 180, "syncing", transport="ipc"),
    _part("engine", "engine of 1B", 180, "sampling"),
    _part("turns", "an engine asleep and awake again", 210, "sleeping"),
    _part("world", "the whole tiny world", 210, "world"),
    _part("in_turns", "an adapter, and roles in turns", 240, "world", "turns"),
    _part("nccl", "weights over `nccl`", 180, "syncing", transport="nccl"),
    _part("train_3B", "trainer step of 3B", 120, "training", model="3B"),
    _part("resume", "save, kill, resume", 270, "world", "resume"),
)
"""In the order in which they are worth most if time runs out."""


class Settings(Block):
    """Of this program."""

    device: Device = setting("where there is no GPU, cpu tries the same code with tiny shapes", "gpu")
    parts: tuple[str, ...] | None = setting(
        f"these alone, in this order; null: {', '.join(part.name for part in PARTS)}", None
    )
    out: AnyPath | None = setting("folder of the report; null: gpu_check-DATE-TIME", None)
    minutes: float | None = setting("what is not begun by then is not begun; null: 15, on a CPU 60", None, gt=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    device: Device
    parts: tuple[Part, ...]
    out: Path
    minutes: float


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings), bare=True)


def options_of(arguments: Sequence[str]) -> Options:
    """Raises ConfigError for what is none."""
    given = read_own(Settings, arguments)
    known = {part.name: part for part in PARTS}
    names = known if given.parts is None else given.parts
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"parts: there is no {unknown[0]!r}; there are {', '.join(known)}")
    out = (given.out or Path(f"gpu_check-{datetime.now():%Y%m%d-%H%M%S}")).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out: {out} exists and is not an empty folder; name another")
    return Options(
        device=given.device,
        parts=tuple(known[name] for name in dict.fromkeys(names)),
        out=out,
        minutes=given.minutes or MINUTES[given.device],
    )


def work(arguments: list[str]) -> int:
    options = options_of(arguments)
    if options.device == "gpu":
        refuse_without_gpu()
    outcomes: list[Outcome] = []
    try:
        check(options, outcomes, lambda line: print(line, flush=True))
    finally:  # Ctrl-C too: what is known is worth keeping
        if outcomes:
            show(options, outcomes)
    return 0 if good(outcomes) else FAILED


def refuse_without_gpu() -> None:
    found, trouble = gpus_here()
    if not found:
        raise ConfigError(
            f"no GPU here ({trouble or 'nvidia-smi lists none'}); docs/gpu.md has what to install. device=cpu tries "
            "the same code with tiny shapes and measures no GPU"
        )


def check(options: Options, outcomes: list[Outcome], say: Callable[[str], None]) -> None:
    """Appends what becomes of each part."""
    deadline = time.monotonic() + 60 * options.minutes
    patience = 1.0 if options.device == "gpu" else CPU_PATIENCE
    for part in options.parts:
        left = deadline - time.monotonic()
        if left <= 0:
            outcomes.append(not_reached(part, options.minutes))
        else:
            limit_s = min(part.limit_s * patience, left)
            say(f"{part.name}: {part.what.replace('`', '')}, {limit_s:.0f} s at most")
            begun = time.monotonic()
            try:
                outcomes.append(run_part(part, options.out, options.device, limit_s, say))
            except KeyboardInterrupt:
                outcomes.append(interrupted(part, options.out, time.monotonic() - begun))
                raise
        say(f"  {part.name}: {outcomes[-1].state}{f', {outcomes[-1].said}' if outcomes[-1].said else ''}")


def show(options: Options, outcomes: Sequence[Outcome]) -> None:
    """The table on the terminal; JSON and Markdown as files."""
    options.out.mkdir(parents=True, exist_ok=True)
    today = date.today()
    report = json.dumps(as_json(outcomes, options.device, today), indent=1, ensure_ascii=False)
    (options.out / "report.json").write_text(report + "\n", encoding="utf-8")
    (options.out / "report.md").write_text(paragraph(outcomes, options.device, today), encoding="utf-8")
    print(f"\n{table(outcomes, options.device)}\n")
    print(f"{options.out / 'report.json'}, and for docs/performance.md: {options.out / 'report.md'}")
    if not measured_gpu(outcomes, options.device):
        print(nothing_measured(outcomes, options.device))


if __name__ == "__main__":
    sys.exit(main())
