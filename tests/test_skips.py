"""A skip for a reason that is not listed fails the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


@pytest.mark.parametrize(("reason", "code"), [("no browser: none is installed", 0), ("a whim", 1)])
def test_a_skip_wants_a_reason_that_is_listed(reason: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\n\ndef test_it():\n    pytest.skip({reason!r})\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--strict-skips", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    refused = f"FAILED: a test is skipped and conftest.ALLOWED_SKIPS has no such reason: {reason}"
    assert (refused in done.stdout) == bool(code)
