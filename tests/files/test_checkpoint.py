"""A run directory is taken once; a checkpoint is whole or not there."""

import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capo_ray.files.checkpoint import TRAINER_FORMAT, Checkpoints, check_saved, check_trainer, read_state
from capo_ray.files.run_dir import RunDirError, claim

ROOT = Path(__file__).resolve().parents[2]


def write(checkpoints: Checkpoints, step: int, **state: object) -> Path:
    partial = checkpoints.begin(step)
    (partial / "trainer").mkdir()
    (partial / "trainer" / "weights").write_text(f"of step {step}")
    return checkpoints.commit(partial, {"step": step, **state})


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_new_run_makes_its_folder(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "a", resume=False).release()
    claim(tmp_path / "runs" / "a", resume=False).release()  # an empty one is as good as none
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
    mine = claim(run_dir, resume=False)
    (run_dir / "models").mkdir()
    (tmp_path / "runs" / "another").mkdir()  # begun by somebody else meanwhile
    mine.abandon()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "another"]


def test_an_empty_folder_of_the_users_own_stays(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    mine = claim(own, resume=False)
    (own / "models").mkdir()
    mine.abandon()
    assert list(tmp_path.iterdir()) == [own] and list(own.iterdir()) == [] and own.stat().st_mode & 0o777 == 0o700


def test_a_run_that_began_stays(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    mine = claim(run_dir, resume=False)
    (run_dir / "config.yaml").touch()
    mine.abandon()
    assert (run_dir / "config.yaml").is_file()


def test_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match=r"the run directory .*/file is a file; pass another run_dir"):
        claim(tmp_path / "file", resume=False)


@pytest.mark.parametrize("place", ["file/run", "n" * 300, "loop/run"])
def test_a_place_that_cannot_hold_a_run(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunDirError, match=r"the run directory .* cannot be (read|written): .*; pass another"):
        claim(tmp_path / place, resume=False)


HOLD = """
import sys; from pathlib import Path; from capo_ray.files.run_dir import claim
mine = claim(Path(sys.argv[1]), resume=True); print("mine", flush=True); sys.stdin.read()
"""


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    """Held until the first one ends, by SIGKILL too, and told who has it since when."""
    (tmp_path / "config.yaml").touch()
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "mine\n"
    with pytest.raises(RunDirError) as error:
        claim(tmp_path, resume=True)
    assert re.fullmatch(
        rf"{tmp_path} is the directory of a run that goes on: process {first.pid} on {socket.gethostname()}, since "
        r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\. End that run first, or pass another run_dir",
        str(error.value),
    )
    first.kill()
    first.communicate()
    claim(tmp_path, resume=True).release()


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
        ("", r"state\.json is broken \(Expecting value"),
        ('{"wandb_id": "a"}', r'state\.json is broken \(it does not say its "step" and "files"\)'),
        (json.dumps([1]), r'does not say its "step"'),
    ],
)
def test_a_broken_state_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RunDirError, match=message):
        read_state(tmp_path)


def test_the_best_and_every_nth_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=4)
    for step in range(1, 11):
        partial = checkpoints.begin(step)
        checkpoints.commit(partial, {"step": step, "score": {3: 0.9, 5: math.nan}.get(step, 0.1 * (step < 9))})
    assert names(tmp_path) == ["step_000003", "step_000004", "step_000008", "step_000010"]


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: (path / "trainer/weights").write_text("of"), "trainer/weights has 2 bytes, 9 were written"),
    "flipped": (
        lambda path: (path / "trainer/weights").write_text("of step 8"),
        "trainer/weights has other bytes than were written",
    ),
    "missing": (lambda path: (path / "trainer/weights").unlink(), "trainer/weights is missing"),
    "no JSON": (lambda path: (path / "state.json").write_text('{"ste'), "state.json is broken ("),
    "no step": (lambda path: (path / "state.json").write_text("[]"), 'is broken (it does not say its "step"'),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_one_is_set_aside_for_the_one_before(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    break_it, said = BREAKS[kind]
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 8)
    break_it(write(checkpoints, 9))
    assert checkpoints.settle() == tmp_path / "checkpoints" / "step_000008" == checkpoints.newest()
    assert names(tmp_path) == ["broken_step_000009", "step_000008"]
    (message,) = caplog.messages
    assert message.startswith("checkpoint step_000009 is broken: ") and said in message
    assert message.endswith("It is set aside as broken_step_000009")


def test_nothing_begins_anew_where_checkpoints_were_written(tmp_path: Path) -> None:
    """All of them broken; and none there any more, as where a disk is not mounted."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.settle() is None
    (write(checkpoints, 1) / "trainer/weights").unlink()
    with pytest.raises(RunDirError) as error:
        checkpoints.settle()
    assert str(error.value) == (
        f"{tmp_path} cannot be gone on with: none of its checkpoints is whole (trainer/weights is missing), and from "
        "step 1 on its records would be written anew. Put the checkpoints back, or start another run with another "
        "run_dir"
    )
    write(checkpoints, 2)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(RunDirError, match="checkpoints/step_000002 is not there any more, and from step 1 on"):
        checkpoints.settle()


def test_what_trainers_have_written(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "pieces_00000_000.safetensors").touch()
    written = {"ranks": 2, "format": 2, "files": ["pieces_00000_000.safetensors"]}
    (tmp_path / "trainer" / "trainer.json").write_text(json.dumps(written))
    check_trainer(tmp_path / "trainer")
    written["files"].append("pieces_00001_000.safetensors")
    (tmp_path / "trainer" / "trainer.json").write_text(json.dumps(written))
    with pytest.raises(RunDirError) as error:
        check_trainer(tmp_path / "trainer")
    assert str(error.value) == (
        f"{tmp_path}/trainer lacks pieces_00001_000.safetensors, which a trainer rank has written: its node does not "
        "see this folder. Put run_dir on storage that every node mounts at the same path"
    )
    (tmp_path / "trainer" / "trainer.json").write_text('{"ranks": 2, "zero_stage": 1}')
    with pytest.raises(RunDirError, match=r" is of format 1, which another version .* \(this one reads 2\)"):
        check_trainer(tmp_path / "trainer")
    for text in ("[]", "{"):
        (tmp_path / "trainer" / "trainer.json").write_text(text)
        with pytest.raises(RunDirError, match=r"trainer\.json is broken"):
            check_trainer(tmp_path / "trainer")


def test_a_save_that_lacks_a_file_of_a_rank_stops_the_run_and_not_its_command_line(tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text(json.dumps({"format": TRAINER_FORMAT, "files": ["pieces_1.safetensors"]}))
    with pytest.raises(RuntimeError, match=r"step 7 is not saved: .* lacks pieces_1\.safetensors.*its node does"):
        check_saved(tmp_path, 7)
