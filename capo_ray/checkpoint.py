"""The run directory and its checkpoints: complete or absent, never mixed.

    RUN_DIR/config.yaml  metrics.jsonl  samples/  tensorboard/  wandb/  checkpoints/step_000020/{state.json, trainer/}

A checkpoint is written beside its place and renamed. Leaves out what the trainer puts into its part (engines) and what
is tracked (tracking).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from capo_ray.types import JsonDict


class RunDirError(ValueError):
    """The run directory cannot be used as asked; the message says what to do."""


def claim(run_dir: Path, *, resume: bool) -> None:
    """Make `run_dir` for a new run, or check that there is a run to resume."""
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
    run_dir.mkdir(parents=True, exist_ok=True)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep

    def newest(self) -> Path | None:
        found = sorted(self._folder.glob("step_*")) if self._folder.is_dir() else []
        whole = [path for path in found if (path / "state.json").is_file()]
        return whole[-1] if whole else None

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` to."""
        partial = self._folder / f".partial_{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def commit(self, partial: Path, state: JsonDict) -> Path:
        """Write `state` into `partial` and move it to its place; older ones beyond `keep` go."""
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        final = self._folder / f"step_{int(state['step']):06d}"
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in sorted(self._folder.glob("step_*"))[: -self._keep]:
            shutil.rmtree(old)
        return final


def read_state(checkpoint: Path) -> JsonDict:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
