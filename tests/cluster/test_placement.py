"""What a cluster is asked for."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ray


def test_more_than_the_cluster_has_is_refused() -> None:
    from capo_ray.cluster.placement import NotEnough, refuse_too_much

    bundles = [{"CPU": 0.1, "GPU": 1.0}] * 3
    refuse_too_much(bundles, {"CPU": 0.3, "GPU": 3.0, "memory": 1e9})
    with pytest.raises(NotEnough) as error:
        refuse_too_much(bundles, {"CPU": 0.2})
    assert str(error.value) == (
        "this run needs 3 GPU (there are 0), 0.3 CPU (there are 0.2). Ask for fewer workers, join a larger cluster "
        "with cluster.address=auto, or start with +experiment=tiny_cpu"
    )
