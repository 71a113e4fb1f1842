"""One fault after another is done to a run of the real stack, in an order that is always the same. The soak
(`make soak`) tries others; docs/reliability.md has what was seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capo_ray.faults import world
from capo_ray.faults.record import FAULTS, read
from capo_ray.faults.table import same_numbers

MINUTES, LEAST_FAULTS = 24, 12
"""So many minutes hold twenty faults on two cores that do nothing else."""


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.e2e
@pytest.mark.ray
@pytest.mark.timeout(2100)
def test_every_promise_is_kept_whatever_is_done_to_a_run(tmp_path: Path) -> None:
    """And the numbers are those of a run that was left alone."""
    if why := world.why_not():
        pytest.skip(f"faults need a disk and a network of their own: {why}")
    for arguments in (["kinds=none", "minutes=3"], [f"minutes={MINUTES}"]):
        command = [sys.executable, "-m", "capo_ray.faults", f"out={tmp_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(read(tmp_path / FAULTS)) >= LEAST_FAULTS
    compared, others = same_numbers(tmp_path)
    assert compared > 20 and others == 0
