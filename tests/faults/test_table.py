"""What is kept of faults adds up over runs, and the page is made of it alone."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capo_ray.faults import __main__ as program
from capo_ray.faults.check import Checked
from capo_ray.faults.kinds import KINDS
from capo_ray.faults.plan import Fault
from capo_ray.faults.record import FAULTS, MEMORY, Record, read
from capo_ray.faults.strike import Tried
from capo_ray.faults.table import page, same_numbers, slope

CHECKED = Checked(steps=90, responses=1440, trained_tokens=9000, largest_gap=1e-5, findings=())


def tried(noticed: float | None, *failures: str) -> Tried:
    return Tried(noticed_s=noticed, recovered_s=2 * noticed if noticed else None, said=("x",), failures=failures)


def run(
    out: Path,
    *those: tuple[str, Tried],
    loss: float = 0.5,
    findings: tuple[str, ...] = (),
    failures: Sequence[str] = (),
) -> None:
    """One that has ended; its numbers say whether anything was amiss."""
    record = Record(out, seed=0)
    seed = record.turn(disturbed=bool(those))
    for number, (kind, came) in enumerate(those, start=record.tried()):
        record.fault(Fault(number=number, kind=KINDS[kind], which=0, delay=0), came)
    files = out / "files"
    files.mkdir(exist_ok=True)
    lines: list[dict[str, Any]] = [{"step": step, "trainer/loss": loss} for step in range(90)]
    (files / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record.ended(replace(CHECKED, findings=findings), files, seed=seed, failures=list(failures), seconds=60)
    record.keep(files, ["step 1"], whole=False)


def test_the_page_has_each_kind_its_promise_and_what_was_seen(tmp_path: Path) -> None:
    run(tmp_path, ("kill the raylet", tried(4.0)), ("kill wandb", tried(None, "nothing said it within 60 s")))
    run(tmp_path, ("kill the raylet", tried(9.0)), findings=("step 3: lost",))
    made = page(tmp_path)
    row = "| kill the raylet | named within 60 s, two steps on within 180 s | 2 | 0 | 6, 9 | 13, 18 |"
    assert row in made.splitlines()
    assert "| kill wandb | named within 60 s, two steps on within 180 s | 1 | 1 | - | - |" in made.splitlines()
    assert "3 faults of 2 kinds; a promise was broken 1 times." in made
    assert "2 runs, 0.0 hours, 180 steps. Of their 2,880 responses, 18,000 tokens" in made and "1 is found" in made
    again = Record(tmp_path, seed=0)
    assert again.run == 2 and again.tried() == 3


def test_a_run_that_left_a_folder_alone_keeps_its_number(tmp_path: Path) -> None:
    Record(tmp_path, seed=0)
    assert Record(tmp_path, seed=0).run == 1


def test_a_line_has_no_folder_of_its_machine(tmp_path: Path) -> None:
    record = Record(tmp_path, seed=0)
    said = f"W cannot write {record.folder}/run/samples, says {sys.prefix}/lib of {tempfile.gettempdir()}/cf-x"
    record.fault(Fault(number=0, kind=KINDS["kill wandb"], which=0, delay=0), replace(tried(1.0, said), said=(said,)))
    (line,) = read(tmp_path / FAULTS)
    assert line["said"] == line["failures"] == ["W cannot write RUN_DIR/samples, says PYTHON/lib of TMPDIR/cf-x"]


def test_runs_of_one_seed_must_have_the_same_numbers(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, ("kill the raylet", tried(4.0)))
    assert same_numbers(tmp_path) == (90, 0)
    run(tmp_path, loss=0.6)
    assert same_numbers(tmp_path) == (90, 0)  # of another seed
    run(tmp_path, ("kill wandb", tried(1.0)), loss=0.7)
    assert same_numbers(tmp_path) == (180, 90)
    run(tmp_path, loss=0.5), run(tmp_path, loss=0.5)
    run(tmp_path)  # of the first seed again: a step that two of them made counts once
    assert same_numbers(tmp_path) == (180, 90)
    said = "180 of 180 steps of disturbed runs were made by an undisturbed run of the same seed too, 90 with other"
    assert said in page(tmp_path)


def test_how_a_run_ended_is_on_the_page(tmp_path: Path) -> None:
    run(tmp_path, ("kill the raylet", tried(4.0)), failures=["Ctrl-C did not end it with 130: step 3"])
    assert "1 of the 1 runs did not end as they were to: Ctrl-C did not end it with 130.\n" in page(tmp_path)


def test_memory_is_a_slope_after_what_is_taken_once(tmp_path: Path) -> None:
    assert slope([(0, 1.0), (1, 1.5), (2, 2.0)]) == 0.5
    Record(tmp_path, seed=0)
    lines = [
        {"run": 0, "step": step, "part": part, "pid": pid, "mib": 100 + min(step, 20) + rate * step}
        for part, pid, rate in (("driver", 1, 0.25), ("trainer rank", 2, 0.0), ("trainer rank", 3, 0.5))
        for step in range(0, 200, 10)
    ]
    lines += [{"run": 0, "step": step, "part": "critic", "pid": 4, "mib": 1.0} for step in range(0, 50, 10)]
    lines += [{"run": 0, "step": step, "part": "wandb", "pid": 5, "mib": 0.0} for step in range(0, 200, 10)]
    (tmp_path / MEMORY).write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = page(tmp_path)
    assert "| driver | left alone | 1 | 0.250, 0.250 | 160 | 168 |" in made
    assert "| trainer rank | left alone | 2 | 0.250, 0.500 |" in made and "wandb" not in made
    assert "critic" not in made  # too few steps to say anything


def test_the_page_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ("kill the raylet", tried(4.0)))
    assert program.main([f"out={tmp_path}", "report=only"]) == 0
    assert page(tmp_path) in capsys.readouterr().out and (tmp_path / "report.md").read_text() == page(tmp_path)


def test_the_page_goes_between_its_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ("kill the raylet", tried(4.0)))
    into = tmp_path / "page.md"
    first, last = program.MARKS
    into.write_text(f"# A\n\n{first}\nold\n{last}\n\nafter\n")
    for _ in range(2):
        assert program.main([f"out={tmp_path}", "report=only", f"into={into}"]) == 0
        assert into.read_text() == f"# A\n\n{first}\n\n{page(tmp_path)}\n{last}\n\nafter\n"
    into.write_text("# A\n")
    assert program.main([f"out={tmp_path}", "report=only", f"into={into}"]) == 2
    assert "into: " in capsys.readouterr().err and into.read_text() == "# A\n"


def test_kinds_are_chosen_by_parts_of_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert [kind.name for kind in program.chosen(["wandb"])] == ["kill wandb", "freeze wandb"]
    assert program.chosen(["none"]) == [] and len(program.chosen([])) == len(KINDS)
    assert program.main(["out=x", "kinds=meteorite"]) == 2
    assert capsys.readouterr().err.startswith("error: kinds: there is no 'meteorite'; take parts of: ")
