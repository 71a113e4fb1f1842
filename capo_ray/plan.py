"""`python -m capo_ray.plan +experiment=llama3b_intersection gpu=h100`: what a run needs and how long it may take.

The plan and the estimates of `dry_run=true`, for any GPUs, on any machine: processes, memory, seconds of a step and of
its stages, GPU hours, who waits, the best split of the GPUs, downloads, disk. Starts nothing and needs no network.

    gpu=h100          a GPU of the table: h100, h200, a100
    gpus=8            how many there are, for the best split; without it as many as the run asks for
    profile=RUN_DIR   the speeds of a run that was, in place of the table's

Everything else is configuration, as for capo_ray.launch. Leaves out everything but reading arguments and printing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from capo_ray.config.listing import of_a_run
from capo_ray.config.run import ConfigError, compose
from capo_ray.data.epochs import in_steps
from capo_ray.planning.estimate import estimate
from capo_ray.planning.hardware import GPUS
from capo_ray.planning.plan import plan_for, render
from capo_ray.program import own_keys, run_program


def work(arguments: list[str]) -> int:
    own, overrides = own_keys(arguments, ("gpu", "gpus", "profile"))
    gpus = own.get("gpus")
    if gpus is not None and not (gpus.isdigit() and int(gpus)):
        raise ConfigError(f"gpus: a number of GPUs, got {gpus!r}")
    config, gpu = in_steps(compose(overrides)), own.get("gpu", "h100")
    guessed = estimate(config, gpu=gpu, gpus=int(gpus) if gpus else None, profile=own.get("profile"))
    print(render(plan_for(config, gpu_gib=GPUS[gpu].gib)))
    print(guessed)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, __doc__ or "", settings=of_a_run)


if __name__ == "__main__":
    sys.exit(main())
