"""`python -m capo_ray.export RUN_DIR [step=N] [out=FOLDER]`: the policy of a checkpoint as a plain model.

A run writes its policy when it ends; this writes that of any checkpoint, of a run that goes on, was stopped or died.
Starts no engine and no Ray. Leaves out how the weights are put together (engines.exported).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from capo_ray.config.block import Block, setting
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.files.checkpoint import Checkpoints, check_trainer, fault_of
from capo_ray.files.durable import move_into_place, written_beside
from capo_ray.files.run_dir import RunDirError
from capo_ray.leaving import leave
from capo_ray.models.chat import read_json
from capo_ray.models.find import is_adapter
from capo_ray.program import run_program

USAGE = """usage: python -m capo_ray.export RUN_DIR [key=value ...]

The policy of a checkpoint as a plain model, of a run that goes on, was stopped or died: transformers and vLLM load it.
Of a run with trainer.lora it is the adapter, or with merge=true its model with the adapter in the weights.

  python -m capo_ray.export runs/first step=400
  python -m capo_ray.evaluate model=runs/first/exports/step_000400 suite=math
  python -m capo_ray.export runs/first/policy merge=true out=merged    # of an adapter that was written
"""


class Settings(Block):
    """Of this program."""

    run_dir: AnyPath = setting("directory of the run, or of an adapter; RUN_DIR alone is it too")
    step: int | None = setting("of the checkpoint after so many steps; null: the newest", None, ge=0)
    out: AnyPath | None = setting("folder to write; null: RUN_DIR/exports/step_N, merged: RUN_DIR/merged/step_N", None)
    merge: bool = setting("write whole weights, with the adapter in them", False)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings))


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments, place="run_dir")
    if is_adapter(given.run_dir):
        _of_adapter(given)
    else:
        _of_run(given)
    return 0


def _of_run(given: Settings) -> None:
    checkpoint = checkpoint_of(given.run_dir, given.step)
    trainer = checkpoint / "trainer"
    out = given.out or given.run_dir / ("merged" if given.merge else "exports") / checkpoint.name
    _refuse_there(out)
    if (fault := fault_of(checkpoint)) is not None:
        raise RunDirError(f"{checkpoint} is broken: {fault}. Take another: step=N")
    check_trainer(trainer)
    adapted = read_json(trainer / "trainer.json").get("lora") is not None
    if given.merge and not adapted:
        raise ConfigError(f"merge: {checkpoint} holds whole weights and no adapter; leave it out")
    print(f"The policy of {checkpoint} is put together (float32, in this machine's memory) ...", flush=True)
    with _written(out) as partial:
        from capo_ray.engines.exported import write_merged, write_policy

        if given.merge:
            with TemporaryDirectory(dir=partial.parent) as adapter:
                write_policy(trainer, Path(adapter))
                write_merged(Path(adapter), partial)
        else:
            write_policy(trainer, partial)
    _say_written(out, adapter=adapted and not given.merge)


def _of_adapter(given: Settings) -> None:
    if not given.merge or given.out is None or given.step is not None:
        raise ConfigError(f"run_dir: {given.run_dir} is an adapter; pass merge=true out=FOLDER, and no step")
    _refuse_there(given.out)
    print(f"{given.run_dir} is added to the weights of its model, in this machine's memory ...", flush=True)
    with _written(given.out) as partial:
        from capo_ray.engines.exported import write_merged

        write_merged(given.run_dir, partial)
    _say_written(given.out, adapter=False)


def _refuse_there(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"out: {out} is there already; name another folder")


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A folder that is at `out` once all of it is written. Raises ConfigError where what is read does not fit."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported: no GPU is needed
    with written_beside(out) as partial:
        partial.mkdir(parents=True)
        try:
            yield partial
        except ValueError as error:
            raise ConfigError(str(error)) from error
        move_into_place(partial, out)


def _say_written(out: Path, *, adapter: bool) -> None:
    if adapter:
        print(f"{out}: an adapter for peft; python -m capo_ray.export {out} merge=true out=MODEL makes a model of it")
    else:
        print(f"{out}: transformers and vLLM load it, and python -m capo_ray.evaluate model={out}")


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
