"""Places that take no output: one line, exit code 1 or 2, and what was there stays as it was."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_disk import little_room
from view_run import write_run

from capo_ray.files.lines import appending
from capo_ray.files.output import BadOutput, CannotWrite, check_output, output_file
from capo_ray.revote import __main__ as revote

ROOT = Path(__file__).resolve().parents[2]


def put(path: Path, text: str) -> None:
    with output_file(path) as file:
        file.write(text)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out"
    put(path, "one")
    path.chmod(0o640)
    put(path, "two")
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o640
    with little_room(), pytest.raises(CannotWrite, match=f"^out: {path} cannot be written: File too large$"):
        put(path, "x" * 10_000)
    with pytest.raises(ZeroDivisionError), output_file(path) as file:
        file.write("three")
        _ = 1 / 0
    assert path.read_text() == "two" and [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_is_no_file_is_written_through_and_stays(tmp_path: Path) -> None:
    """/dev/full was replaced by a file once."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    put(link, "one")
    assert link.is_symlink() and target.read_text() == "one"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    put(fifo, "two")
    assert os.read(reader, 10) == b"two" and fifo.is_fifo()
    os.close(reader)
    put(Path("/dev/null"), "three")
    with pytest.raises(CannotWrite, match=r"^out: /dev/full cannot be written: No space left on device$"):
        put(Path("/dev/full"), "four")
    assert all(Path(device).is_char_device() for device in ("/dev/null", "/dev/full"))


def test_a_place_that_takes_nothing_is_told_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "x", f"there is no folder {tmp_path}/none"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/x"), "No such file or directory"),
        (tmp_path / "loop", "it is a link to itself"),
    ):
        with pytest.raises(BadOutput) as error:
            check_output(path)
        assert str(error.value).startswith(f"out: {path}"[:200]) and str(error.value).endswith(
            f" cannot be written: {why}"
        )
    check_output(tmp_path / "file")
    check_output(tmp_path / ("x" * 255))
    check_output(Path("/dev/null"))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


def test_revote_leaves_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "run"))
    assert revote.main([run, "vote=union", "out=/dev/full"]) == 1
    assert capsys.readouterr().err == ("error: out: /dev/full cannot be written: No space left on device\n")
    assert Path("/dev/full").is_char_device()
    assert revote.main([run, "vote=union", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err == (f"error: out: {tmp_path} cannot be written: Is a directory\n")


@pytest.mark.slow
def test_a_run_directory_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    command = [sys.executable, "-m", "capo_ray.launch", "+experiment=tiny_cpu", f"run_dir={tmp_path}/loop/x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "leads to itself" in done.stderr


GROUP = {"id": 1, "responses": [{"text": "a", "outcome": 1, "critiques": []}, {"text": "b", "outcome": 0}]}
PROGRAMS = {
    "grade": (["capo_ray.grade", "processes=1"], {"gold": "4", "answer": "4"}),
    "credit": (["capo_ray.credit", f"tokenizer={ROOT}/capo_ray/assets/tiny_policy"], GROUP),
    "revote": (["capo_ray.revote", "{run}", "vote=union"], {}),
    "launch": (["capo_ray.launch", "+experiment=tiny_cpu", "dry_run=true"], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_standard_output_that_is_full_or_closed(name: str, tmp_path: Path) -> None:
    arguments, line = PROGRAMS[name]
    command = [sys.executable, "-m", *(part.format(run=tmp_path / "run") for part in arguments)]
    write_run(tmp_path / "run")
    (tmp_path / "in").write_text((json.dumps(line) + "\n") * 3000 if line else "")
    closed, closing = os.pipe()
    os.close(closed)
    full = os.open("/dev/full", os.O_WRONLY)
    said = {"closed": (1, "")}
    for where, out in (("full", full), ("closed", closing))[: 2 if name == "grade" else 1]:
        with (tmp_path / "in").open() as given:
            done = subprocess.run(
                command, stdin=given, stdout=out, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120, check=False
            )
        said[where] = done.returncode, done.stderr
    os.close(full)
    os.close(closing)
    assert said["full"] == (1, "error: standard output cannot be written: No space left on device\n")
    assert said["closed"] == (1, "")


def test_a_line_that_does_not_fit_costs_no_other(tmp_path: Path) -> None:
    """Responses of an evaluation and replies of critics, appended by many tasks at a time."""
    path = tmp_path / "responses.jsonl"

    async def fill() -> None:
        async def one(number: int) -> None:
            append(f"{number:0100}\n")

        with appending(path) as append:
            async with asyncio.TaskGroup() as tasks:
                for number in range(50):
                    tasks.create_task(one(number))

    with little_room(), pytest.raises(CannotWrite, match=f"^{path} cannot be written: File too large$"):
        asyncio.run(fill())
    assert path.read_text() == "".join(f"{number:0100}\n" for number in range(40))
