"""`python -m capo_ray.export`: which checkpoint, where to, and what is refused. The weights: tests/engines."""

import errno
import os
from pathlib import Path

import pytest

from capo_ray.export import main
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.program import BAD_INPUT, FAILED


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (4, 8):
        partial = checkpoints.begin(step)
        (partial / "trainer").mkdir()
        (partial / "trainer" / "weights").write_text("w")
        (partial / "trainer" / "trainer.json").write_text('{"format": 2}')
        checkpoints.commit(partial, {"step": step})
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step=5"], "step: {run_dir} has no checkpoint of 5; there are 4, 8"),
        (["step=-1"], "step: must be at least 0, got '-1'"),
        (["out={run_dir}"], "out: {run_dir} is there already; name another folder"),
        (["merge=true"], "merge: {run_dir}/checkpoints/step_000008 holds whole weights and no adapter; leave it out"),
        (["steps=4"], "steps: no such key; did you mean step?"),
    ],
)
def test_what_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    given = [argument.format(run_dir=run_dir) for argument in arguments]
    assert main([str(run_dir), *given]) == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"error: {message.format(run_dir=run_dir)}")
    assert not (run_dir / "exports").exists()


def test_no_checkpoint_and_a_broken_one(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert main([str(empty)]) == BAD_INPUT
    assert capsys.readouterr().err == f"error: {empty} has no checkpoint\n"
    (run_dir / "checkpoints" / "step_000008" / "trainer" / "weights").write_text("v")
    assert main([str(run_dir)]) == BAD_INPUT
    assert capsys.readouterr().err == (
        f"error: {run_dir}/checkpoints/step_000008 is broken: trainer/weights has other bytes than were written. Take "
        "another: step=N\n"
    )


def test_a_checkpoint_of_an_earlier_format(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = Checkpoints(run_dir, keep=2).begin(9)
    (older / "trainer").mkdir()
    (older / "trainer" / "trainer.json").write_text("{}")
    Checkpoints(run_dir, keep=2).commit(older, {"step": 9})
    assert main([str(run_dir)]) == BAD_INPUT
    assert " is of format 1, which another version of capo_ray wrote" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["merge=true"], ["merge=true", "out=out", "step=1"]])
def test_an_adapter_is_merged_to_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    assert main([str(tmp_path), *given]) == BAD_INPUT
    assert capsys.readouterr().err == (
        f"error: run_dir: {tmp_path} is an adapter; pass merge=true out=FOLDER, and no step\n"
    )


def test_an_export_that_does_not_fit_leaves_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(trainer: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr("capo_ray.engines.exported.write_policy", half)
    assert main([str(run_dir), f"out={run_dir}/exports/p"]) == FAILED
    assert capsys.readouterr().err == f"error: {run_dir}/exports/.p.partial: No space left on device\n"
    assert list((run_dir / "exports").iterdir()) == []
