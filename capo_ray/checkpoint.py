"""The run directory and its checkpoints: complete or absent, never mixed.

    RUN_DIR/config.yaml  metrics.jsonl  samples/  critiques/  responses/  tensorboard/  wandb/
    RUN_DIR/checkpoints/step_000020/{state.json, trainer/}

A checkpoint is written beside its place and renamed; one that goes is renamed before it is removed. Whoever is killed
in between leaves a folder whose name begins with a dot: never read, removed by the next checkpoint. Leaves out what the
trainer puts into its part (engines) and what is tracked (tracking).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from capo_ray.types import JsonDict

_NAME = re.compile(r"step_(\d{6,})")


class RunDirError(ValueError):
    """The run directory cannot be used as asked; the message says what to do."""


def claim(run_dir: Path, *, resume: bool) -> list[Path]:
    """Make `run_dir` for a new run, or check that there is a run to resume. The folders made, innermost first."""
    check_claim(run_dir, resume=resume)
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    return made


def check_claim(run_dir: Path, *, resume: bool) -> None:
    """Raises RunDirError where a run cannot begin in `run_dir`, or be resumed."""
    if run_dir.exists() and not run_dir.is_dir():
        raise RunDirError(f"the run directory {run_dir} is a file; pass another run_dir")
    begun = (run_dir / "config.yaml").is_file()
    if resume and not begun:
        raise RunDirError(
            f"{run_dir} holds no run to resume (no config.yaml); leave resume=true out to start one there"
        )
    if not resume and run_dir.exists() and any(run_dir.iterdir()):
        raise RunDirError(
            f"the run directory {run_dir} exists and is not empty: pass resume=true to continue that run, "
            "or another run_dir (or none) to start a new one"
        )


def abandon(run_dir: Path, made: Sequence[Path] = ()) -> None:
    """Remove what a run left that never began: one without a config.yaml, and what `claim` made above it, where nothing
    else stands in it by now. A run that began stays as it is."""
    if run_dir.is_dir() and not (run_dir / "config.yaml").is_file():
        shutil.rmtree(run_dir)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep

    def newest(self) -> Path | None:
        whole = self._whole()
        return whole[-1] if whole else None

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` to."""
        for left in self._folder.glob(".*"):
            shutil.rmtree(left)
        partial = self._folder / f".partial_{step:06d}"
        partial.mkdir(parents=True)
        return partial

    def commit(self, partial: Path, state: JsonDict) -> Path:
        """Write `state`, which names its "step", into `partial` and move it to its place; all but `keep` go."""
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        final = self._folder / f"step_{int(state['step']):06d}"
        if final.exists():
            self._remove(final)
        partial.rename(final)
        for old in self._whole()[: -self._keep]:
            self._remove(old)
        return final

    def _whole(self) -> list[Path]:
        """Ascending by step."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        named = {int(name[1]): path for path in found if (name := _NAME.fullmatch(path.name))}
        return [named[step] for step in sorted(named) if (named[step] / "state.json").is_file()]

    def _remove(self, path: Path) -> None:
        gone = path.rename(path.with_name(f".removed_{path.name}"))
        shutil.rmtree(gone)


def read_state(checkpoint: Path) -> JsonDict:
    """What `commit` was given."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirError(f"{checkpoint / 'state.json'} is broken ({error}); {_WITHOUT_IT}") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise RunDirError(f'{checkpoint / "state.json"} does not say its "step"; {_WITHOUT_IT}')
    return state


_WITHOUT_IT = "remove that checkpoint's folder to go on from the one before it"
