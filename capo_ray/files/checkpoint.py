"""The checkpoints of a run: whole or absent, looked at before they are gone on from, and thinned by what a user keeps.

    RUN_DIR/checkpoints/step_000020/{state.json, trainer/}

A checkpoint is written beside its place, synced and renamed; one that goes is renamed before it is removed. Whoever is
killed in between leaves a folder whose name begins with a dot: never read, removed by the next checkpoint. `state.json`
is written last and names every other file with its size and checksum. One that does not hold what it names is set
aside as `broken_step_000020`, and the one before it is gone on from. Leaves out what the trainer puts into its part
(engines), what is tracked (records.tracking), and the directory around (run_dir).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from capo_ray.files.durable import move_into_place, write_text
from capo_ray.files.run_dir import RunDirError
from capo_ray.types import JsonDict

log = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{6,})")
_STATE = "state.json"
TRAINER_FORMAT = 2
"""Of the trainer's part (engines.trainer_state)."""
_NEWEST = ".newest_checkpoint"
"""Stands in the run's directory and names the checkpoint that was written last, so that one that is gone is missed."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep: int, keep_every: int = 0) -> None:
        """`keep` newest ones stay, those of every `keep_every` steps (0: none), and the one whose state has the highest
        "score"."""
        self._folder = run_dir / "checkpoints"
        self._keep = keep
        self._keep_every = keep_every

    def newest(self) -> Path | None:
        """By its name alone: `settle` looks inside."""
        steps = self.steps()
        return self.at(max(steps)) if steps else None

    def steps(self) -> list[int]:
        """Ascending."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        named = {int(name[1]): path for path in found if (name := _NAME.fullmatch(path.name))}
        return sorted(step for step, path in named.items() if (path / _STATE).is_file())

    def at(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}"

    def settle(self) -> Path | None:
        """The newest whole one, to go on from; broken ones that are newer are set aside, each with a word.

        Raises RunDirError where checkpoints were written and none is whole any more: going on would begin anew.
        """
        faults = []
        for step in reversed(self.steps()):
            path = self.at(step)
            if (fault := fault_of(path)) is None:
                return path
            faults.append(fault)
            aside = path.rename(_free(path.with_name(f"broken_{path.name}")))
            log.warning("checkpoint %s is broken: %s. It is set aside as %s", path.name, fault, aside.name)
        if faults or (written := self._last_written()) is not None:
            why = f"none of its checkpoints is whole ({faults[0]})" if faults else f"{written} is not there any more"
            raise RunDirError(
                f"{self._folder.parent} cannot be gone on with: {why}, and from step 1 on its records would be written "
                "anew. Put the checkpoints back, or start another run with another run_dir"
            )
        return None

    def _last_written(self) -> Path | None:
        """Also where it is gone."""
        told = self._folder.with_name(_NEWEST)
        return self._folder / told.read_text(encoding="utf-8").strip() if told.is_file() else None

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` to."""
        for left in self._folder.glob(".*"):
            shutil.rmtree(left)
        partial = self._folder / f".partial_{step:06d}"
        partial.mkdir(parents=True)
        return partial

    def commit(self, partial: Path, state: JsonDict) -> Path:
        """Write `state`, which names its "step", into `partial` and move it to its place. Which others stay: see the
        class."""
        step = int(state["step"])
        write_text(partial / _STATE, json.dumps({**state, "files": _described(partial)}, indent=1) + "\n")
        final = self.at(step)
        if final.exists():
            self._remove(final)
        move_into_place(partial, final)
        write_text(self._folder.with_name(_NEWEST), f"{final.name}\n")
        best = self._best()
        for old in self.steps()[: -self._keep]:
            if old != best and not (self._keep_every and old % self._keep_every == 0):
                self._remove(self.at(old))
        return final

    def _best(self) -> int | None:
        scores = {}
        for step in self.steps():
            with suppress(RunDirError):
                scores[step] = read_state(self.at(step)).get("score")
        known = [(score, step) for step, score in scores.items() if isinstance(score, float) and math.isfinite(score)]
        return max(known)[1] if known else None

    def _remove(self, path: Path) -> None:
        gone = path.rename(path.with_name(f".removed_{path.name}"))
        shutil.rmtree(gone)


def read_state(checkpoint: Path) -> JsonDict:
    """What `commit` was given. Raises RunDirError where it is not that."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(f"{checkpoint / _STATE} is broken ({error})") from error
    if not isinstance(state, dict) or type(state.get("step")) is not int or not isinstance(state.get("files"), dict):
        raise RunDirError(f'{checkpoint / _STATE} is broken (it does not say its "step" and "files")')
    return {name: value for name, value in state.items() if name != "files"}


def check_trainer(folder: Path) -> None:
    """Raises RunDirError where what trainer ranks wrote to `folder` is of another format than these read, or lacks a
    file that one of them has written."""
    try:
        said = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        version, files = said.get("format", 1), said.get("files", [])
        missing = [name for name in files if not (folder / name).is_file()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunDirError(f"{folder}/trainer.json is broken ({type(error).__name__}: {error})") from error
    if version != TRAINER_FORMAT:
        raise RunDirError(
            f"the checkpoint {folder} is of format {version}, which another version of capo_ray wrote (this one "
            f"reads {TRAINER_FORMAT}): go on with that version, or export the policy with it and begin another run "
            "with policy.path=FOLDER"
        )
    if missing:
        raise RunDirError(
            f"{folder} lacks {missing[0]}, which a trainer rank has written: its node does not see this folder. Put "
            "run_dir on storage that every node mounts at the same path"
        )


def check_saved(folder: Path, step: int) -> None:
    """As `check_trainer`, of what was just written: that is no fault of a command line. Raises RuntimeError."""
    try:
        check_trainer(folder)
    except RunDirError as error:
        raise RuntimeError(f"step {step} is not saved: {error}") from error


def fault_of(checkpoint: Path) -> str | None:
    """What keeps it from being gone on from: the first file that is not what was written. Reads all of it."""
    try:
        read_state(checkpoint)
        named = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["files"]
        return next((fault for fault in _faults(checkpoint, named) if fault), None)
    except (RunDirError, OSError) as error:
        return str(error)


def _faults(checkpoint: Path, named: JsonDict) -> Iterator[str | None]:
    there = dict.fromkeys(_files(checkpoint))
    for name, written in named.items():
        path = checkpoint / name
        if path not in there:
            yield f"{name} is missing"
        elif (size := path.stat().st_size) != written["bytes"]:
            yield f"{name} has {size:,} bytes, {written['bytes']:,} were written"
    paths = [checkpoint / name for name in named]
    for name, now in zip(named, _checksums(paths), strict=True):
        yield None if now == named[name]["sha256"] else f"{name} has other bytes than were written"


def _described(folder: Path) -> JsonDict:
    paths = _files(folder)
    checksums = _checksums(paths)
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": checksum}
        for path, checksum in zip(paths, checksums, strict=True)
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _STATE)


def _checksums(paths: list[Path]) -> Iterator[str]:
    """SHA-256 of each file, several at a time: hashing lets go of Python's lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        yield from threads.map(_checksum, paths)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(path: Path) -> Path:
    """`path`, or the first of PATH_2, PATH_3, ... that is not there."""
    taken = path.parent / path.name
    number = 1
    while taken.exists():
        number += 1
        taken = path.with_name(f"{path.name}_{number}")
    return taken
