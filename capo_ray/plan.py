"""`python -m capo_ray.plan +experiment=llama3b_intersection gpu=h100`: what a run needs and how long it may take.

The plan and the estimates of `dry_run=true`, for any GPUs, on any machine. Leaves out everything but reading arguments
and printing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from capo_ray.config.block import setting
from capo_ray.config.compose import compose
from capo_ray.config.listing import beside_run
from capo_ray.config.own_settings import BesideRun, read_own
from capo_ray.data.epochs import in_steps
from capo_ray.planning.estimate import estimate
from capo_ray.planning.hardware import GPUS
from capo_ray.planning.plan import plan_for, render
from capo_ray.program import run_program

USAGE = """usage: python -m capo_ray.plan +experiment=NAME [key=value ...]

What a run needs and how long it may take: processes, memory, seconds of a step and of its stages, GPU hours, who waits,
the best split of the GPUs, downloads, disk. Starts nothing and needs no network.

  python -m capo_ray.plan +experiment=llama3b_intersection gpu=h100 gpus=8
"""


class Settings(BesideRun):
    """Of this program."""

    gpu: str = setting(f"a GPU of the table: {', '.join(GPUS)}", "h100")
    gpus: int | None = setting("how many there are, for the best split; null: as many as the run asks for", None, ge=1)
    profile: str | None = setting("RUN_DIR whose speeds are taken in place of the table's", None)


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    config = in_steps(compose(given.overrides))
    guessed = estimate(config, gpu=given.gpu, gpus=given.gpus, profile=given.profile)
    print(render(plan_for(config, gpu_gib=GPUS[given.gpu].gib)))
    print(guessed)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=beside_run(Settings))


if __name__ == "__main__":
    sys.exit(main())
