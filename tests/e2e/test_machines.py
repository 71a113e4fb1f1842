"""A run on three machines with a network between them: cables are pulled, one is lost, one told to go, one comes back.

They are namespaces of this one (machines); docs/reliability.md has what this prints.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from machines import PATIENT, machines, refused
from running import UNEVALUATED, Running, alike, numbers, steps_in

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(600)]

MORE_THAN_ONE = "reward.aggregators=7"
"""With two trainer ranks, a rollout worker and a critic: eleven actors of a tenth of a core, on machines of a core. So
two of the three hold the run, and one does not."""
STEPS = 20
DROP_S = 20


def test_machines_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := refused():
        pytest.skip(f"no network namespaces: {why}")
    for name, value in {"RAY_AUTH_MODE": "disabled", **PATIENT}.items():
        monkeypatch.setenv(name, value)
    settings = (*UNEVALUATED, f"steps={STEPS}", "checkpoint_every=1", MORE_THAN_ONE, "cluster.placement=spread")
    with machines() as some:
        first, second, third = some.add(), some.add(), some.add()
        with Running(tmp_path / "run", *settings, f"cluster.address={some.address}") as running:
            running.read_until(f"step  2/{STEPS}")
            begun = time.monotonic()
            for name in (first, second):
                some.pull(name)
            time.sleep(DROP_S)
            for name in (first, second):
                some.plug(name)
            running.read_steps(2)
            print(f"two cables out for {DROP_S} s: two steps after {time.monotonic() - begun:.0f} s")
            assert "lost" not in running.output and "died" not in running.output, running.output

            begun = time.monotonic()
            some.kill(first)
            running.read_past("was lost")
            noticed = time.monotonic() - begun
            running.read_steps(2)
            print(f"one of three lost: noticed {noticed:.0f} s, two steps on {time.monotonic() - begun:.0f} s")

            begun = time.monotonic()
            some.tell_to_go(second)
            running.read_past("is told to go within ")
            noticed = time.monotonic() - begun
            running.read_past("waiting for the lost machine, or another, since ")
            left = time.monotonic() - begun
            some.come_back(first)
            running.read_steps(2)
            print(f"one told to go: noticed {noticed:.0f} s, left {left:.0f} s, two steps on")
            assert some.has_ended(second), "it was left, and its Ray did not end"
            assert some.actors(first) and some.actors(third), "a machine that has come back is not used"
            ended = running.end()
        assert ended.code == 0, ended.output
    assert ended.output.count("was lost") == 1, ended.output  # the other was left, and cost nothing
    seen = numbers(ended.steps)
    assert [line["step"] for line in ended.steps] == list(range(1, STEPS + 1))
    assert sorted({line["run/restarts"] for line in ended.steps}) == [0, 1, 2]
    again = [numbers(steps_in(file.parent)) for file in (ended.run_dir / "rolled_back").glob("*/metrics.jsonl")]
    for step, line in [pair for lines in again for pair in lines.items()]:
        assert seen.get(step, line) == alike(line), f"step {step} has other numbers when it is done again"
