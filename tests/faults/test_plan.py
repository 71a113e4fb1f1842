"""The order of faults: a seed replays it, wherever it is begun; each kind comes once before any comes again."""

from itertools import islice

from capo_ray.faults.kinds import KINDS
from capo_ray.faults.plan import Fault, faults

ALL = list(KINDS.values())


def first(count: int, *, seed: int = 0, start: int = 0) -> list[Fault]:
    return list(islice(faults(ALL, seed=seed, start=start), count))


def test_a_seed_replays_and_another_does_not() -> None:
    assert first(100) == first(100)
    assert [fault.kind for fault in first(100)] != [fault.kind for fault in first(100, seed=1)]


def test_it_goes_on_from_anywhere() -> None:
    whole = first(3 * len(ALL))
    for start in (0, 1, len(ALL) - 1, len(ALL), len(ALL) + 5):
        assert first(10, start=start) == whole[start : start + 10]
    assert [fault.number for fault in whole] == list(range(len(whole)))


def test_each_kind_comes_as_often_as_another() -> None:
    assert len(KINDS) >= 10
    for bag in range(3):
        drawn = first(len(ALL), start=bag * len(ALL))
        assert sorted(fault.kind.name for fault in drawn) == sorted(KINDS)
        assert all(0 <= fault.which < 1 and 0 <= fault.delay < 1 for fault in drawn)
