"""A small Ray session for the tests of a folder, on CPU; its actors can import what stands in that folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def small_ray(folder: Path, logs: Path) -> Iterator[Any]:
    import ray

    from capo_ray.cluster.session import ray_session
    from capo_ray.config.blocks import Cluster

    cluster = Cluster(device="cpu", cpus=2, object_store_gib=0.2, dashboard=False)
    os.environ["PYTHONPATH"] = str(folder) + os.pathsep + os.environ.get("PYTHONPATH", "")
    with ray_session(cluster, logs=logs):
        yield ray
