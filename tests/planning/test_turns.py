"""Who is awake in which phase where all roles share all GPUs."""

from typing import get_args

from capo_ray.config.compose import compose
from capo_ray.planning.turns import Phase, awake


def test_who_works_in_a_phase_is_awake_in_it() -> None:
    found = awake(compose(["+experiment=tiny_cpu"]), {}, 80.0)
    assert tuple(found) == get_args(Phase)
    assert {phase: sorted(roles) for phase, roles in found.items()} == {
        "sample": ["rollout"],
        "judge": ["critic"],
        "train": ["trainer"],
        "sync": ["rollout", "trainer"],
    }
