"""`python -m capo_ray.export RUN_DIR [step=N] [out=FOLDER]`: the policy of a checkpoint as a plain model.

A run writes its policy when it ends; this writes that of any checkpoint, of a run that goes on, was stopped or died.
Starts no engine and no Ray. Leaves out how the weights are put together (engines.exported).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from capo_ray.config.block import Block, setting
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.files.checkpoint import Checkpoints, check_trainer, fault_of
from capo_ray.files.durable import move_into_place, written_beside
from capo_ray.files.run_dir import RunDirError
from capo_ray.leaving import leave
from capo_ray.program import run_program

USAGE = """usage: python -m capo_ray.export RUN_DIR [key=value ...]

The policy of a checkpoint as a plain model, of a run that goes on, was stopped or died: transformers and vLLM load it.

  python -m capo_ray.export runs/first step=400
  python -m capo_ray.evaluate model=runs/first/exports/step_000400 suite=math
"""


class Settings(Block):
    """Of this program."""

    run_dir: AnyPath = setting("directory of the run; RUN_DIR alone is it too")
    step: int | None = setting("of the checkpoint after so many steps; null: the newest", None, ge=0)
    out: AnyPath | None = setting("folder to write; null: RUN_DIR/exports/step_N", None)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings))


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments, place="run_dir")
    run_dir = given.run_dir
    checkpoint = checkpoint_of(run_dir, given.step)
    out = given.out or run_dir / "exports" / checkpoint.name
    if out.exists():
        raise ConfigError(f"out: {out} is there already; name another folder")
    if (fault := fault_of(checkpoint)) is not None:
        raise RunDirError(f"{checkpoint} is broken: {fault}. Take another: step=N")
    check_trainer(checkpoint / "trainer")
    with written_beside(out) as partial:
        partial.mkdir(parents=True)
        print(f"The policy of {checkpoint} is put together (float32, in this machine's memory) ...", flush=True)
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported: no GPU is needed
        from capo_ray.engines.exported import write_policy

        write_policy(checkpoint / "trainer", partial)
        move_into_place(partial, out)
    print(f"{out}: transformers and vLLM load it, and python -m capo_ray.evaluate model={out}")
    return 0


def checkpoint_of(run_dir: Path, step: int | None) -> Path:
    """Raises ConfigError, with the steps that there are."""
    checkpoints = Checkpoints(run_dir, keep=1)
    there = checkpoints.steps()
    if not there:
        raise ConfigError(f"{run_dir} has no checkpoint")
    if step is None:
        return checkpoints.at(there[-1])
    if step not in there:
        raise ConfigError(f"step: {run_dir} has no checkpoint of {step}; there are {', '.join(map(str, there))}")
    return checkpoints.at(step)


if __name__ == "__main__":
    leave(main())
