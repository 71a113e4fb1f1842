"""`python -m capo_ray.lab run=quick`: train the arms of a design over seeds, and say what came of it.

    python -m capo_ray.lab run=NAME [out=runs/lab-NAME] [arms=A,B] [report=only] [key=value ...]

NAME is a file of conf/lab, or a path ending in .yaml. Results are kept as they land in OUT/ARM/seed-N; run the same
command again to go on. The report is OUT/report.md with a figure per table, OUT/runs.csv what each run measured;
`report=only` writes them and runs nothing. With `arms` only these are run; the report has all that are finished.
Further overrides go to every run that is run, and those that change what comes of it (not `critic.workers=2`, say) are
what all runs in OUT must have been run with. Leaves out what a run is (see `capo_ray.launch`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capo_ray.config.run import ConfigError
from capo_ray.lab.design import Design, designs, load
from capo_ray.lab.report import curves, every_run, figure_of, page
from capo_ray.lab.runs import RunFailed, matters, results, run_all
from capo_ray.program import GOES_ON, OF_A_RUN, leave, need, own_keys, run_program

OWN = ("run", "out", "arms", "report")


def write_report(design: Design, out: Path) -> Path:
    """OUT/report.md, its figures and runs.csv beside it, of the runs that are finished."""
    found = results(design, out)
    begun = {design.arms[result.arm].group for result in found}
    for group in begun:
        (out / figure_of(group)).write_text(curves(design, found, group), encoding="utf-8")
    (out / "runs.csv").write_text(every_run(found), encoding="utf-8")
    path = out / "report.md"
    path.write_text(page(design, found), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line asks for."""

    design: str
    out: Path
    arms: tuple[str, ...] = ()
    """Those to be run; empty: all."""
    report_only: bool = False
    overrides: tuple[str, ...] = ()
    """Of every run that is run."""


def parse(arguments: Sequence[str]) -> Asked:
    """Raises ConfigError."""
    given, overrides = own_keys(arguments, OWN)
    if stray := [argument for argument in overrides if "=" not in argument]:
        raise ConfigError(f"arguments are key=value, got {' '.join(stray)}")
    name = given.get("run", "")
    if not name:
        raise ConfigError(f"name a design with run=NAME: {', '.join(designs())}")
    report = given.get("report", "")
    if report not in ("", "only"):
        raise ConfigError(f"report is `only` or is left out, got {report!r}")
    return Asked(
        design=name,
        out=Path(given.get("out", f"runs/lab-{Path(name).stem}")).expanduser().resolve(),
        arms=tuple(arm for arm in given.get("arms", "").strip("[]").split(",") if arm),
        report_only=report == "only",
        overrides=tuple(overrides),
    )


def work(arguments: list[str]) -> int:
    asked = parse(arguments)
    warnings.filterwarnings("ignore", "reward.process_weight P")  # an arm may be about that
    design = load(asked.design)
    need("numpy", "matplotlib", *(() if asked.report_only else OF_A_RUN))
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.report_only:
        run_all(design.with_common(asked.overrides), asked.out, design.runs(asked.arms))
    path = write_report(design.with_common(filter(matters, asked.overrides)), asked.out)
    print(f"\n{path.read_text(encoding='utf-8')}\nThe report: {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, __doc__ or "", failures=(RunFailed,), afterwards=GOES_ON)


if __name__ == "__main__":
    leave(main())
