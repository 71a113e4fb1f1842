"""What is kept of an update whose gradient was not finite, so that it can be looked at and repeated (replay).

    RUN_DIR/nonfinite/step_000007/{rank_0.json, rank_1.json, ..., update.json}

Each rank writes what it trained on, the driver then what they have in common: a folder with update.json is whole. The
last few stay. It is JSON, so that whoever is sent a folder runs nothing by reading it. Leaves out the weights, which
are those of a checkpoint or the run's first ones, and what was sampled around the tokens (samples/, the ledger).
"""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from capo_ray.engines.protocols import UpdateBatch
from capo_ray.files.durable import write_text
from capo_ray.files.run_dir import RunDirError
from capo_ray.types import JsonDict, Metrics, TrainSequence

FOLDER = "nonfinite"
KEEP = 3
"""Folders that stay: at full size one has the tokens of a thousand responses, some 100 MB."""
_NAME = re.compile(r"step_(\d{6,})")
_UPDATE = "update.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One update, as it was begun."""

    step: int
    """Of the run, from 1."""
    optimizer_step: int
    """Optimizer steps that had been taken or skipped before it."""
    checkpoint: str | None
    """Name of the newest checkpoint that there was."""
    metrics: Metrics
    """What the update said of itself, those numbers that are finite."""
    shares: tuple[UpdateBatch, ...]
    """What each rank trained on."""


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step_{step:06d}"


def write_share(folder: Path, rank: int, batch: UpdateBatch, *, optimizer_step: int) -> None:
    """What `rank` trained on; `optimizer_step` as in Kept."""
    folder.mkdir(parents=True, exist_ok=True)
    micro_batches = [[[asdict(one) for one in some] for some in step] for step in batch.micro_batches]
    share = {
        "optimizer_step": optimizer_step,
        "denominators": list(batch.denominators),
        "centre": batch.centre,
        "spread": batch.spread,
        "micro_batches": micro_batches,
    }
    write_text(folder / f"rank_{rank}.json", json.dumps(share) + "\n")


def write_update(folder: Path, *, step: int, ranks: int, checkpoint: str | None, metrics: Metrics) -> None:
    """What the shares of `ranks` ranks have in common, see Kept. Folders of which there are too many by now go, the
    first ones first."""
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    about = {"step": step, "ranks": ranks, "checkpoint": checkpoint, "metrics": finite}
    write_text(folder / _UPDATE, json.dumps(about, indent=1) + "\n")
    whole = sorted(_whole(folder.parent), key=lambda path: (path / _UPDATE).stat().st_mtime_ns)
    for old in whole[:-KEEP]:
        if old != folder:
            shutil.rmtree(old)


def find(path: Path) -> Path:
    """The folder itself, or the one that was written last in the run directory `path`. Raises RunDirError."""
    if (path / _UPDATE).is_file():
        return path
    if found := _whole(path / FOLDER):
        return max(found, key=lambda one: (one / _UPDATE).stat().st_mtime_ns)
    raise RunDirError(f"{path} has no update that is kept: neither {_UPDATE} nor {FOLDER}/step_.../{_UPDATE} is there")


def read(folder: Path) -> Kept:
    """Raises RunDirError, with the file, where one is missing or not what was written."""
    about = _object(folder / _UPDATE)
    try:
        shares = [_object(folder / f"rank_{rank}.json") for rank in range(int(about["ranks"]))]
        made = tuple(_batch(share) for share in shares)
        if len({(len(one.denominators), *map(len, one.micro_batches)) for one in made}) != 1:
            raise ValueError("its ranks do not have the same steps and micro-batches")
        return Kept(
            step=int(about["step"]),
            optimizer_step=int(shares[0]["optimizer_step"]),
            checkpoint=None if about["checkpoint"] is None else str(about["checkpoint"]),
            metrics={name: float(value) for name, value in about["metrics"].items() if value is not None},
            shares=made,
        )
    except RunDirError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunDirError(f"{folder} is not an update that was kept ({type(error).__name__}: {error})") from error


def _whole(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if _NAME.fullmatch(path.name) and (path / _UPDATE).is_file()]


def _object(file: Path) -> JsonDict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(f"{file} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise RunDirError(f"{file} is not an object")
    return content


def _batch(share: JsonDict) -> UpdateBatch:
    if len(share["denominators"]) != len(share["micro_batches"]):
        raise ValueError("it has not one denominator for each optimizer step")
    return UpdateBatch(
        micro_batches=[[[_sequence(one) for one in some] for some in step] for step in share["micro_batches"]],
        denominators=[float(number) for number in share["denominators"]],
        centre=float(share["centre"]),
        spread=float(share["spread"]),
    )


def _sequence(one: JsonDict) -> TrainSequence:
    return TrainSequence(
        prompt_ids=tuple(map(int, one["prompt_ids"])),
        token_ids=tuple(map(int, one["token_ids"])),
        advantages=tuple(map(float, one["advantages"])),
        logprobs=tuple(map(float, one["logprobs"])),
        loss_mask=tuple(map(bool, one["loss_mask"])),
        source=str(one["source"]),
    )
