"""`python -m capo_ray.replay`: which response an update broke by, on one rank and on two, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines.trainer_ranks import Ranks, sequences

from capo_ray.cluster import nonfinite
from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.program import BAD_INPUT
from capo_ray.replay import Task, main, replayed
from capo_ray.training.run import write_config
from capo_ray.types import TrainSequence

TINY = ("+experiment=tiny_cpu",)


def named(count: int, *, broken: int | None = None) -> list[TrainSequence]:
    """One of them with an advantage that is an infinity in float32 once it is divided by 0.01."""
    made = [replace(one, source=f"p/{n}", loss_mask=()) for n, one in enumerate(sequences(count))]
    if broken is not None:
        made[broken] = replace(made[broken], advantages=(3e38, *made[broken].advantages[1:]))
    return made


def kept(*ranks: list[list[TrainSequence]], step: int = 5) -> nonfinite.Kept:
    """One optimizer step; of each rank its micro-batches."""
    shares = tuple(UpdateBatch(micro_batches=[some], denominators=[60.0], spread=0.01) for some in ranks)
    return nonfinite.Kept(step=step, optimizer_step=6, checkpoint="step_000003", metrics={}, shares=shares)


def task(config: Config, of: nonfinite.Kept, checkpoint: str | None = None) -> Task:
    model = Path(__file__).resolve().parents[2] / "capo_ray" / "assets" / "tiny_policy"
    return Task(config=config, kept=of, model=str(model), checkpoint=checkpoint, port=1)


def saved(rank: int, ranks: int, told: Task, path: str) -> None:
    """A checkpoint after one good update, of which weights were made so large that every logit is NaN."""
    from contextlib import closing

    import torch

    from capo_ray.training.build import make_trainer

    with closing(make_trainer(told.config, told.model, rank=rank, host="", port=told.port)) as engine:
        with torch.no_grad():
            engine._engine.optimizer.single_partition_of_fp32_groups[0].fill_(float("nan"))
            engine._engine.optimizer.update_lp_params()
        engine.save(path)


def said(rank: int, ranks: int, told: Task) -> list[str]:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "1"  # the group is there already
    return list(replayed(rank, told))


@pytest.mark.engine
def test_the_response_is_named_whichever_rank_it_was_on(two: Ranks, tmp_path: Path) -> None:
    config = compose([*TINY, "trainer.ranks=2"])
    fine, broken = named(6), named(6, broken=4)
    of = kept([fine[:2], fine[2:3]], [broken[3:4], broken[4:6]])
    heard: Any = two.each(said, task(config, of))
    assert heard[0] == heard[1]
    whole, *pieces = heard[0]
    assert whole.startswith("the whole update: loss ") and "norm not finite" in whole
    assert [piece.split(":")[0] for piece in pieces] == [
        "optimizer step 0, rank 0, micro-batch 0 (2 responses)",
        "optimizer step 0, rank 1, micro-batch 0 (1 response)",
        "optimizer step 0, rank 0, micro-batch 1 (1 response)",
        "optimizer step 0, rank 1, micro-batch 1 (2 responses)",
    ]
    assert all("the first is" not in piece for piece in pieces[:3])
    assert pieces[3].endswith("the first is response p/4, by its loss")

    lost = str(tmp_path / "lost")
    two.each(saved, task(config, of), lost)
    _, *pieces = two(said, task(config, of, lost))
    assert pieces[0].endswith("norm not finite, largest ratio nan: the first is response p/0, by its log-probabilities")


@pytest.mark.engine
def test_a_whole_run_directory_is_enough_and_nothing_in_it_changes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_config(compose([*TINY, "trainer.ranks=1"]), run_dir)
    folder = write(run_dir, kept([named(3, broken=1)]))
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-m", "capo_ray.replay", str(run_dir)], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        f"{folder}: step 5 of {run_dir}, 1 rank",
        "Weights: those that the run began with (no checkpoint from before is there), step_000003 is gone: 4 steps "
        "earlier, so that it may be finite with them",
    ]
    assert lines[-1].endswith("the first is response p/1, by its loss")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def write(run_dir: Path, of: nonfinite.Kept) -> Path:
    folder = nonfinite.folder_of(run_dir, of.step)
    for rank, share in enumerate(of.shares):
        nonfinite.write_share(folder, rank, share, optimizer_step=of.optimizer_step)
    ranks = len(of.shares)
    nonfinite.write_update(folder, step=of.step, ranks=ranks, checkpoint=of.checkpoint, metrics=of.metrics)
    return folder


def test_what_cannot_be_repeated_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(list(arguments)) == BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert f"{run_dir} has no update that is kept" in refused(str(run_dir))
    folder = write(run_dir, kept([named(2)], [named(2)]))
    assert f"{run_dir}/config.yaml cannot be read" in refused(str(run_dir))
    write_config(compose([*TINY, "trainer.ranks=1"]), run_dir)
    assert "device: must be one of cpu, gpu, got 'tpu'" in refused(str(folder), "device=tpu")
    elsewhere = tmp_path / "copy"
    shutil.copytree(folder, elsewhere)
    assert "name the run by run_dir=" in refused(str(elsewhere))
    write_config(compose([*TINY, "trainer.ranks=2"]), run_dir)
    (run_dir / "metrics.jsonl").write_text('{"step": 0, "x": 1}\n')
    assert "was written by a version that counted training steps from 0" in refused(str(folder))
    (run_dir / "metrics.jsonl").unlink()
    checkpoints = Checkpoints(run_dir, keep=9)
    for step in (2, 5):
        partial = checkpoints.begin(step)
        (partial / "weights").write_text("w")
        checkpoints.commit(partial, {"step": step})
    (checkpoints.at(2) / "weights").write_text("v")
    assert f"{checkpoints.at(2)} is broken: weights has other bytes" in refused(str(folder))
