"""One Ray session for the tests of this folder; its actors can import what stands in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="package")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray

    from capo_ray.cluster.session import ray_session
    from capo_ray.config.blocks import Cluster

    cluster = Cluster(device="cpu", weight_transfer="shm", cpus=2, object_store_gib=0.2, dashboard=False)
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = here + os.pathsep + os.environ.get("PYTHONPATH", "")
    with ray_session(cluster, logs=tmp_path_factory.mktemp("logs")):
        yield ray
