"""What the terminal shows of a run: in place on a real pseudo-terminal, lines elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capo_ray.program import run_program
from capo_ray.records.terminal import InPlace, Lines, display, rows_by_actor, rows_by_role, trend

ROOT = Path(__file__).resolve().parents[2]
METRICS = {
    "outcome/accuracy": 0.52,
    "speed/rollout_tokens_per_s": 850.0,
    "idle/rollout_share": 0.25,
    "idle/aggregator_share": 1.0,
    "actor/rollout-0/tokens_per_s": 800.0,
    "actor/rollout-0/busy_share": 0.5,
    "actor/aggregator-0/busy_share": 0.0,
}


def test_roles_and_actors() -> None:
    assert rows_by_role(METRICS) == [("rollout", "850", "75.0%"), ("aggregator", "", "0.0%")]
    assert rows_by_actor(METRICS) == [("rollout-0", "800", "50.0%"), ("aggregator-0", "", "0.0%")]
    assert rows_by_role({}) == rows_by_actor({}) == []


@pytest.mark.parametrize(
    ("values", "shown"), [([0, 1, 0.5], "▁█▄"), ([2.0, 2.0], ""), ([-1], ""), ([0, 7, 1, 6], "▁█▂▇")]
)
def test_a_trend(values: list[float], shown: str) -> None:
    assert trend(values) == shown


def test_lines_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display(3), Lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(3), Lines)
    monkeypatch.setenv("TERM", "xterm")
    shown = display(3)
    shown.close()
    assert isinstance(shown, InPlace)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The package's, as it was before afterwards."""
    log = logging.getLogger("capo_ray")
    log.setLevel(logging.NOTSET)  # a program that was asked to say more, in a test before, has set it
    yield log
    log.setLevel(logging.NOTSET)


def test_every_actor_where_more_is_asked_for(capsys: pytest.CaptureFixture[str], log: logging.Logger) -> None:
    lines = Lines(3)
    lines.step(1, METRICS)
    log.setLevel(logging.INFO)
    lines.step(2, METRICS)
    assert capsys.readouterr().out.splitlines() == [
        "step 1/3 | right answer 52.0% | tok/s rollout 850",
        "step 2/3 | right answer 52.0% | tok/s rollout 850",
        "  rollout-0  800  50.0%",
        "  aggregator-0    0.0%",
    ]


def test_the_time_that_is_left_is_shown_from_the_third_step(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(200)
    for step, seconds in enumerate((600.0, 60.0, 62.0), start=1):  # the first step warms up
        lines.step(step, {"seconds/step": seconds})
    shown = capsys.readouterr().out.splitlines()
    assert ["left" in line for line in shown] == [False, False, True]
    assert shown[2].endswith("| 3 h 24 min left")
    lines.step(200, {"seconds/step": 60.0})
    assert "left" not in capsys.readouterr().out


@pytest.mark.parametrize(("given", "verbose"), [([], False), (["-v"], True), (["--verbose"], True)])
def test_verbose_is_no_argument_of_a_program(given: list[str], verbose: bool, log: logging.Logger) -> None:
    seen: list[object] = []

    def work(arguments: list[str]) -> int:
        seen.extend([arguments, log.isEnabledFor(logging.INFO)])
        return 0

    assert run_program(work, ["a=1", *given, "b=2"], "usage", settings=str) == 0
    assert seen == [["a=1", "b=2"], verbose]


SHOWN = """
import logging, sys
from capo_ray.records.terminal import display
logging.basicConfig(format="W %(message)s", stream=sys.stderr)
shown = display(4)
shown.rewind(1)
shown.evaluation(1, {"outcome/accuracy": 0.25})
for step, accuracy in enumerate((0.5, 0.75, float("nan")), start=2):
    shown.step(step, {"outcome/accuracy": accuracy, "speed/rollout_tokens_per_s": 850.0, "idle/rollout_share": 0.25})
    logging.warning("after %d", step)
shown.close()
logging.warning("the end")
"""


def test_in_place(tmp_path: Path) -> None:
    """On a real terminal: what is to be kept stands above, the newest numbers below, and the end after them."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT), "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-c", SHOWN], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    raw = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so that the other end is closed
            break
        if not part:
            break
        raw += part
    assert process.wait(timeout=60) == 0
    lines = screen(raw.decode())
    assert lines[:4] == ["evaluation after 1 steps | right answer 25.0%", "W after 2", "W after 3", "W after 4"]
    assert lines[4].startswith("training ━") and " 4/4 " in lines[4]
    assert any(line.startswith("right answer") and "nan%" in line and "▁█" in line for line in lines[5:])
    assert any("rollout" in line and "850" in line and "75.0%" in line for line in lines[5:])
    assert lines[-1] == "W the end"


def screen(text: str) -> list[str]:
    """What stands on a terminal after `text`, for the few controls that are used: a line up, and a line cleared."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(text):
        if text[at] == "\x1b":
            end = at + 2
            while not text[end].isalpha():
                end += 1
            control, number = text[end], text[at + 2 : end]
            if control == "A":
                row = max(0, row - int(number or 1))
            elif control == "K":
                lines[row] = ""
            at = end + 1
            continue
        if text[at] == "\n":
            row += 1
            column = 0
            if row == len(lines):
                lines.append("")
        elif text[at] == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + text[at] + lines[row][column + 1 :]
            column += 1
        at += 1
    return [line.rstrip() for line in lines if line.strip()]
