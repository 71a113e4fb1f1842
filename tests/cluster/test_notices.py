"""Which machines that are told to go concern a run, as Ray tells of them; tests/e2e/test_machines.py has a real one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from capo_ray.cluster.notices import HEAD, Notice, concerning

HERE, NOW_S = "a" * 8, 1_000.0


def node(name: str, address: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name * 8, "NodeManagerAddress": address, "Resources": resources}


NODES = [node("a", "10.0.0.1"), node("b", "10.0.0.2", **{HEAD: 1.0}), node("c", "10.0.0.3"), node("d", "10.0.0.4")]


def seen(*going: tuple[str, float], used: str = "cd") -> Notice | None:
    ends = {name * 8: int(1000 * end_s) for name, end_s in going}
    return concerning(ends, NODES, {name * 8 for name in used}, HERE, now_s=NOW_S)


def test_one_with_actors_of_the_run_is_to_be_left_in_time() -> None:
    found = seen(("c", NOW_S + 20))
    assert found == Notice(machines=("10.0.0.3",), within_s=20.0, for_good=False)
    assert str(found) == "10.0.0.3 is told to go within 20 s"


def test_one_without_is_nobodys_affair() -> None:
    assert seen(("d", NOW_S + 20), used="c") is None


def test_of_several_the_first_end_counts() -> None:
    found = seen(("c", 0), ("d", NOW_S + 30))
    assert found is not None and found.within_s == 30
    assert str(found) == "10.0.0.3 and 10.0.0.4 are told to go within 30 s"
    no_end = seen(("c", 0))
    assert no_end is not None and str(no_end) == "10.0.0.3 is told to go"
    late = seen(("c", NOW_S - 5))
    assert late is not None and late.within_s == 0


@pytest.mark.parametrize("name", ["a", "b"])
def test_without_this_program_or_rays_head_no_run_goes_on(name: str) -> None:
    found = seen((name, 0), used="")
    assert found is not None and found.for_good


@pytest.mark.ray
def test_ray_is_asked_as_it_wants_to_be(ray_here: Any) -> None:
    """With a machine that is not told to go, and then with one that Ray says it of."""
    from capo_ray.cluster import notices

    assert notices.told_to_go() == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notices, "told_to_go", lambda: {ray_here.nodes()[0]["NodeID"]: 0})
        found = asyncio.run(asyncio.wait_for(notices.notice(look_s=0.1), 30))
    assert found.for_good and len(found.machines) == 1
