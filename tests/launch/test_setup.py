"""requirements/setup.sh, with a stand-in for the interpreter where the network would be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = """#!/bin/bash
# Python 3.11 by its word; makes a folder with itself where it is asked for an environment, and notes what pip is asked.
all="$*"
case "$all" in
*"-m venv "*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
*"-m pip "*) echo "${all##*--quiet }" >> "$ASKED" ;;
esac
"""


def set_up(folder: Path, device: str, **environment: str) -> tuple[int, str, list[str]]:
    """Exit code, what it said, and what pip was asked."""
    python, asked = folder / "python", folder / "asked"
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    asked.write_text("")
    done = subprocess.run(
        [ROOT / "requirements" / "setup.sh", device],
        env=dict(os.environ) | {"PYTHON": str(python), "VENV": str(folder / "venv"), "ASKED": str(asked)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr, asked.read_text().splitlines()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_stack_of_a_device_is_installed_once(tmp_path: Path, device: str) -> None:
    code, said, asked = set_up(tmp_path, device)
    assert code == 0, said
    lock = (ROOT / "requirements" / f"{device}.lock").read_text()
    torch = next(line for line in lock.splitlines() if line.startswith("torch=="))
    assert asked == [
        f"install --no-deps --no-compile {torch}",
        f"install --no-deps --no-compile -r requirements/{device}.lock",
        "install --no-deps --no-build-isolation --editable .",
    ]
    assert f"with the stack of requirements/{device}.lock" in said
    assert set_up(tmp_path, device) == (0, "", [])


@pytest.mark.parametrize(("first", "then"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_one_stack_is_never_put_over_the_other(tmp_path: Path, first: str, then: str) -> None:
    assert set_up(tmp_path, first)[0] == 0
    code, said, asked = set_up(tmp_path, then)
    assert (code, asked) == (1, [])
    assert f"holds the other stack ({first}-" in said
    assert "remove it, or name another folder: VENV=FOLDER" in said


def test_without_python_3_11_it_says_where_to_get_one(tmp_path: Path) -> None:
    code, said, asked = set_up(tmp_path, "gpu", PYTHON="/usr/bin/false")
    assert (code, asked) == (1, [])
    assert "Python 3.11 is needed (requirements/gpu.lock is made for it)" in said
    assert "docs/gpu.md says how to get one on Ubuntu" in said
