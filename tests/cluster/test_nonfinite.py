"""What is kept of an update whose gradient was not finite: written by ranks, read again, bounded; and by a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capo_ray.cluster import nonfinite
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.files.run_dir import RunDirError
from capo_ray.types import TrainSequence


def share(rank: int) -> UpdateBatch:
    sequence = TrainSequence(
        prompt_ids=(1, 2), token_ids=(3, 4), advantages=(0.1, math.inf), logprobs=(-1 / 3, -2.0),
        loss_mask=(True, False), source=f"p-{rank}/5",
    )  # fmt: skip
    return UpdateBatch(micro_batches=[[[sequence], []], [[], []]], denominators=[3.0, 1.0], centre=0.5, spread=1e-42)


def keep(run_dir: Path, step: int) -> Path:
    folder = nonfinite.folder_of(run_dir, step)
    for rank in range(2):
        nonfinite.write_share(folder, rank, share(rank), optimizer_step=7)
    nonfinite.write_update(
        folder, step=step, ranks=2, checkpoint="step_000003", metrics={"loss": math.nan, "grad_norm": 2.0}
    )
    return folder


def test_what_ranks_trained_on_is_read_as_it_was(tmp_path: Path) -> None:
    folder = keep(tmp_path, 4)
    assert nonfinite.find(tmp_path) == nonfinite.find(folder) == folder
    kept = nonfinite.read(folder)
    assert (kept.step, kept.optimizer_step, kept.checkpoint, kept.metrics) == (4, 7, "step_000003", {"grad_norm": 2.0})
    assert kept.shares == (share(0), share(1))


def test_the_last_few_stay_and_the_newest_is_found_whatever_its_step(tmp_path: Path) -> None:
    for number, step in enumerate((8, 9, 10, 2, 3)):
        os.utime(keep(tmp_path, step) / "update.json", ns=(number, number))
    assert sorted(path.name for path in (tmp_path / "nonfinite").iterdir()) == [
        "step_000002",
        "step_000003",
        "step_000010",
    ]
    assert nonfinite.find(tmp_path).name == "step_000003"


def no_update(folder: Path) -> None:
    (folder / "update.json").unlink()


def no_rank(folder: Path) -> None:
    (folder / "rank_1.json").unlink()


def torn(folder: Path) -> None:
    (folder / "rank_0.json").write_text('{"optimizer_step"')


def other(folder: Path) -> None:
    (folder / "update.json").write_text("[]")


def lacking(folder: Path) -> None:
    content = json.loads((folder / "rank_1.json").read_text())
    content["micro_batches"][0][0][0]["logprobs"] = [0.0]
    (folder / "rank_1.json").write_text(json.dumps(content))


def uneven(folder: Path) -> None:
    content = json.loads((folder / "rank_1.json").read_text())
    content["micro_batches"][0].append([])
    (folder / "rank_1.json").write_text(json.dumps(content))


def undivided(folder: Path) -> None:
    content = json.loads((folder / "rank_0.json").read_text())
    content["denominators"] = [1.0]
    (folder / "rank_0.json").write_text(json.dumps(content))


def nobody(folder: Path) -> None:
    (folder / "update.json").write_text('{"step": 4, "ranks": 0, "checkpoint": null, "metrics": {}}')


def boundless(folder: Path) -> None:
    (folder / "update.json").write_text('{"step": Infinity, "ranks": 2, "checkpoint": null, "metrics": {}}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_update, "update.json cannot be read ("),
        (no_rank, "rank_1.json cannot be read ("),
        (torn, "rank_0.json cannot be read (Expecting"),
        (other, "update.json is not an object"),
        (uneven, "do not have the same steps and micro-batches"),
        (undivided, "not one denominator for each optimizer step"),
        (nobody, "do not have the same steps and micro-batches"),
        (boundless, "is not an update that was kept (OverflowError"),
        (lacking, "is not an update that was kept (ValueError: sequence lengths differ"),
    ],
)
def test_what_is_missing_or_broken_is_said_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = keep(tmp_path, 4)
    damage(folder)
    with pytest.raises(RunDirError) as error:
        nonfinite.read(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_where_nothing_was_kept_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="has no update that is kept"):
        nonfinite.find(tmp_path)
