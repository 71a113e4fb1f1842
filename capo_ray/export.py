"""`python -m capo_ray.export RUN_DIR [step=N] [out=FOLDER]`: the policy of a checkpoint as a plain model.

A run writes its policy when it ends; this writes that of any checkpoint, of a run that goes on, was stopped or died.
Starts no engine and no Ray. Leaves out how the weights are put together (engines.exported).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from capo_ray.checkpoint import Checkpoints, fault_of
from capo_ray.config.run import ConfigError
from capo_ray.durable import move_into_place
from capo_ray.program import leave, own_keys, run_program
from capo_ray.run_dir import RunDirError

USAGE = """usage: python -m capo_ray.export RUN_DIR [step=N] [out=FOLDER]

  step=N      of the checkpoint after N steps; the newest one when left out
  out=FOLDER  where to; RUN_DIR/exports/step_N when left out

transformers and vLLM load what it writes; so do python -m capo_ray.evaluate model=FOLDER and policy.path=FOLDER
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE)


def work(arguments: list[str]) -> int:
    own, rest = own_keys(arguments, ["step", "out"])
    if len(rest) != 1 or "=" in rest[0]:
        raise ConfigError(f"one run directory is wanted, got {' '.join(rest) or 'none'}\n\n{USAGE}".rstrip())
    run_dir = Path(rest[0]).expanduser()
    checkpoint = checkpoint_of(run_dir, own.get("step"))
    out = Path(own["out"]).expanduser() if "out" in own else run_dir / "exports" / checkpoint.name
    if out.exists():
        raise ConfigError(f"out: {out} is there already; name another folder")
    if (fault := fault_of(checkpoint)) is not None:
        raise RunDirError(f"{checkpoint} is broken: {fault}. Take another: step=N")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"The policy of {checkpoint} is put together (float32, in this machine's memory) ...", flush=True)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported: no GPU is needed
    from capo_ray.engines.exported import write_policy

    write_policy(checkpoint / "trainer", partial)
    move_into_place(partial, out)
    print(f"{out}: transformers and vLLM load it, and python -m capo_ray.evaluate model={out}")
    return 0


def checkpoint_of(run_dir: Path, step: str | None) -> Path:
    """Raises ConfigError, with the steps that there are."""
    checkpoints = Checkpoints(run_dir, keep=1)
    there = checkpoints.steps()
    if not there:
        raise ConfigError(f"{run_dir} has no checkpoint")
    if step is None:
        return checkpoints.at(there[-1])
    if not step.isdecimal() or int(step) not in there:
        raise ConfigError(f"step: {run_dir} has no checkpoint of {step}; there are {', '.join(map(str, there))}")
    return checkpoints.at(int(step))


if __name__ == "__main__":
    leave(main())
