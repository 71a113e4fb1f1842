"""`python -m capo_ray.lab run=quick`: train the arms of a design over seeds, and say what came of it.

Results are kept as they land in OUT/ARM/seed-N; run the same command again to go on. The report is OUT/report.md with a
figure per table, OUT/runs.csv what each run measured. Overrides go to every run that is run, and those that change what
comes of it (not `critic.workers=2`, say) are what all runs in OUT must have been run with. Leaves out what a run is
(see `capo_ray.launch`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from capo_ray.config.block import setting
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import beside_run
from capo_ray.config.own_settings import AnyPath, BesideRun, read_own
from capo_ray.lab.design import Design, designs, load
from capo_ray.lab.report import curves, every_run, figure_of, page
from capo_ray.lab.runs import RunFailed, matters, results, run_all
from capo_ray.leaving import leave
from capo_ray.program import GOES_ON, OF_A_RUN, need, run_program

USAGE = """usage: python -m capo_ray.lab run=NAME [key=value ...]

Trains the arms of a design over seeds, and says what came of it in OUT/report.md. The same command goes on where it was
stopped. Settings of a run go to every run.

  python -m capo_ray.lab run=quick
"""


class Asked(BesideRun):
    """Of this program."""

    run: str = setting("a design: a file of conf/lab, or a path ending in .yaml", "")
    out: AnyPath | None = setting("folder of the runs and the report; null: runs/lab-NAME", None)
    arms: tuple[str, ...] = setting("these alone are run; empty: all. The report has all that are finished", ())
    report: Literal["only"] | None = setting("only: the report is written and nothing is run", None)

    @property
    def folder(self) -> Path:
        return (self.out or Path(f"runs/lab-{Path(self.run).stem}")).resolve()


def write_report(design: Design, out: Path) -> Path:
    """OUT/report.md, its figures and runs.csv beside it, of the runs that are finished."""
    found = results(design, out)
    out.mkdir(parents=True, exist_ok=True)
    begun = {design.arms[result.arm].group for result in found}
    for group in begun:
        (out / figure_of(group)).write_text(curves(design, found, group), encoding="utf-8")
    (out / "runs.csv").write_text(every_run(found), encoding="utf-8")
    path = out / "report.md"
    path.write_text(page(design, found), encoding="utf-8")
    return path


def parse(arguments: Sequence[str]) -> Asked:
    """Raises ConfigError."""
    asked = read_own(Asked, arguments)
    if not asked.run:
        raise ConfigError(f"name a design with run=NAME: {', '.join(designs())}")
    return asked


def work(arguments: list[str]) -> int:
    asked = parse(arguments)
    out = asked.folder
    warnings.filterwarnings("ignore", "reward.process_weight P")  # an arm may be about that
    design = load(asked.run)
    need("numpy", "matplotlib", *(() if asked.report else OF_A_RUN))
    if not asked.report:
        run_all(design.with_common(asked.overrides), out, design.runs(asked.arms))
    path = write_report(design.with_common(filter(matters, asked.overrides)), out)
    print(f"\n{path.read_text(encoding='utf-8')}\nThe report: {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=beside_run(Asked), failures=(RunFailed,), afterwards=GOES_ON)


if __name__ == "__main__":
    leave(main())
