"""A run directory is taken once; a checkpoint is whole or not there."""

import json
from pathlib import Path

import pytest

from capo_ray.checkpoint import Checkpoints, RunDirError, abandon, claim, read_state


def write(checkpoints: Checkpoints, step: int, **state: object) -> Path:
    partial = checkpoints.begin(step)
    (partial / "trainer").mkdir()
    (partial / "trainer" / "weights").write_text(f"of step {step}")
    return checkpoints.commit(partial, {"step": step, **state})


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_new_run_makes_its_folder(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "a", resume=False)
    claim(tmp_path / "runs" / "a", resume=False)  # an empty one is as good as none
    assert (tmp_path / "runs" / "a").is_dir()


def test_a_run_that_exists_is_not_mixed_with_another(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    message = (
        f"the run directory {tmp_path} exists and is not empty: pass resume=true to continue that run, "
        "or another run_dir (or none) to start a new one"
    )
    with pytest.raises(RunDirError) as error:
        claim(tmp_path, resume=False)
    assert str(error.value) == message
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(RunDirError) as error:
        claim(absent, resume=True)
    assert str(error.value) == (
        f"{absent} holds no run to resume (no config.yaml); leave resume=true out to start one there"
    )
    assert not absent.exists()
    (tmp_path / "config.yaml").touch()
    claim(tmp_path, resume=True)


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "new" / "a"
    made = claim(run_dir, resume=False)
    (run_dir / "models").mkdir()
    (tmp_path / "runs" / "another").mkdir()  # begun by somebody else meanwhile
    abandon(run_dir, made)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "another"]


def test_a_run_that_began_stays(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    made = claim(run_dir, resume=False)
    (run_dir / "config.yaml").touch()
    abandon(run_dir, made)
    assert (run_dir / "config.yaml").is_file()


def test_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match=r"the run directory .*/file is a file; pass another run_dir"):
        claim(tmp_path / "file", resume=False)


def test_what_was_committed_is_read_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    written = write(checkpoints, 20, wandb_id="abc")
    assert written == checkpoints.newest() == tmp_path / "checkpoints" / "step_000020"
    assert read_state(written) == {"step": 20, "wandb_id": "abc"}
    assert (written / "trainer" / "weights").read_text() == "of step 20"


def test_a_partial_one_is_ignored_and_removed_by_the_next(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    torn = checkpoints.begin(2)
    (torn / "state.json").write_text('{"step": 2}')  # killed before the rename
    half = tmp_path / "checkpoints" / "step_000009"
    half.mkdir()  # whatever it is, it has no state
    assert Checkpoints(tmp_path, keep=2).newest() == tmp_path / "checkpoints" / "step_000001"
    fresh = checkpoints.begin(2)
    assert list(fresh.iterdir()) == []
    assert names(tmp_path) == [".partial_000002", "step_000001", "step_000009"]


def test_older_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        write(checkpoints, step)
    assert names(tmp_path) == ["step_000003", "step_000010"]


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    """Also past the six digits of a name, and beside folders of other names."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (999_999, 1_000_000):
        write(checkpoints, step)
    (tmp_path / "checkpoints" / "step_mine").mkdir()
    assert checkpoints.newest() == tmp_path / "checkpoints" / "step_1000000"
    write(checkpoints, 1_000_001)
    write(checkpoints, 1_000_002)
    assert names(tmp_path) == ["step_1000000", "step_1000001", "step_1000002", "step_mine"]


def test_a_step_is_written_again_after_a_rollback(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1, note="old")
    assert read_state(write(checkpoints, 1, note="new"))["note"] == "new"
    assert names(tmp_path) == ["step_000001"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"state\.json is broken \(Expecting value.*\); remove that checkpoint's folder"),
        ('{"wandb_id": "a"}', r'state\.json does not say its "step"; remove that checkpoint\'s folder to go on from'),
        (json.dumps([1]), r'does not say its "step"'),
    ],
)
def test_a_broken_state_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RunDirError, match=message):
        read_state(tmp_path)
