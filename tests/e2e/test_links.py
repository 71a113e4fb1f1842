"""A run over three machines with a network between them, whose cables are pulled.

They are namespaces of this one (machines); docs/reliability.md has what this prints.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from machines import PATIENT, machines, refused
from running import QUICK, Running, numbers

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(600)]

MORE_THAN_ONE = "reward.aggregators=7"
"""With two trainer ranks, a rollout worker and a critic: eleven actors of a tenth of a core, on nodes of a core."""
STEPS = 20
DROP_S = 20


def test_a_pulled_cable_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := refused():
        pytest.skip(f"no network namespaces: {why}")
    for name, value in {"RAY_AUTH_MODE": "disabled", **PATIENT}.items():
        monkeypatch.setenv(name, value)
    settings = (*QUICK[:-2], f"steps={STEPS}", "checkpoint_every=99", MORE_THAN_ONE, "cluster.placement=spread")
    with machines() as some:
        first, second = some.add(), some.add()
        with Running(tmp_path / "run", *settings, f"cluster.address={some.address}") as running:
            running.read_until(f"step  2/{STEPS}")
            for name in (first, second):
                some.pull(name)
                begun = time.monotonic()
                time.sleep(DROP_S)
                some.plug(name)
                running.read_steps(2)
                print(f"a cable out for {DROP_S} s: two steps after {time.monotonic() - begun:.0f} s")
            assert "lost" not in running.output and "died" not in running.output, running.output
            ended = running.end()
        assert ended.code == 0, ended.output
    assert sorted(numbers(ended.steps)) == list(range(1, STEPS + 1))
    assert {line["run/restarts"] for line in ended.steps} == {0}
