"""What a cluster is asked for."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ray


def test_more_than_the_cluster_has_is_refused() -> None:
    from capo_ray.cluster.faults import NotEnough
    from capo_ray.cluster.placement import refuse_too_much

    bundles = [{"CPU": 0.1, "GPU": 1.0}] * 3
    refuse_too_much(bundles, {"CPU": 0.3, "GPU": 3.0, "memory": 1e9})
    with pytest.raises(NotEnough) as error:
        refuse_too_much(bundles, {"CPU": 0.2})
    assert str(error.value) == (
        "this run needs 3 GPU (there are 0), 0.3 CPU (there are 0.2). Ask for fewer workers, join a larger cluster "
        "with cluster.address=auto, or start with +experiment=tiny_cpu"
    )


def test_a_bundle_that_fits_no_node_is_refused_and_not_waited_for() -> None:
    from capo_ray.cluster.faults import NotEnough
    from capo_ray.cluster.placement import refuse_misfit, refuse_too_much

    bundles, nodes = [{"CPU": 4.0, "GPU": 4.0}], [{"CPU": 8.0, "GPU": 1.0}] * 16
    refuse_too_much(bundles, {"CPU": 128.0, "GPU": 16.0})
    with pytest.raises(NotEnough, match="an engine needs 4 GPUs on one node, and the largest node has 1") as error:
        refuse_misfit(bundles, nodes)
    assert str(error.value).endswith("Lower tensor_parallel of the engines, or take larger nodes")


def test_no_advice_to_join_a_cluster_that_is_joined() -> None:
    from capo_ray.cluster.faults import NotEnough
    from capo_ray.cluster.placement import refuse_too_much

    with pytest.raises(NotEnough, match="add nodes to the cluster"):
        refuse_too_much([{"CPU": 1.0}], {"CPU": 0.5}, joined=True)


def test_a_rollout_worker_is_counted_as_a_critic_too_where_its_base_judges() -> None:
    from capo_ray.cluster.placement import badge_of
    from capo_ray.config.compose import compose
    from capo_ray.planning.bundles import seats

    def badges(*more: str) -> list[tuple[str, str]]:
        config = compose(["+experiment=tiny_cpu", "cluster.sharing=turns", "rollout.workers=2", *more])
        made = [badge_of(config, "night", seat) for seat in seats(config)[1]]
        return [(badge.actor, badge.critic) for badge in made if badge.role in ("rollout", "critic")]

    base = badges("trainer.lora.rank=8", "critic=base", "critic.window=null")
    assert base == [("rollout-0", "critic-0"), ("rollout-1", "critic-1")]
    assert badges() == [("rollout-0", ""), ("rollout-1", ""), ("critic-0", "")]
