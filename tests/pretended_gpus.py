"""A Ray session that says it has GPUs, and an engine's stand-in that says what vLLM would do in its place.

Ray hands out numbers of GPUs and sets CUDA_VISIBLE_DEVICES whether or not there are any. Leaves out what is expected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from capo_ray.engines.vllm_settings import VllmSettings


@contextmanager
def ray_with_gpus(number: int, *, logs: Path) -> Iterator[None]:
    """The product's own session on one node of `number` GPUs that are not there; its actors can import what stands in
    this folder."""
    from capo_ray.cluster.session import ray_session
    from capo_ray.config.blocks import Cluster

    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = here + os.pathsep + os.environ.get("PYTHONPATH", "")
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"GPU": number})
    with ray_session(Cluster(cpus=4 * number, object_store_gib=0.2, dashboard=False), logs=logs):
        yield


def engine_of(settings: VllmSettings) -> dict[str, Any]:
    """What vLLM's own configuration makes of the engine of `settings`, in this process's placement group."""
    from vllm.config import ParallelConfig, SchedulerConfig
    from vllm.v1.executor import Executor

    from capo_ray.engines.vllm_engine import arguments_of

    asked = arguments_of(settings)
    shared = {field.name: getattr(asked, field.name, None) for field in fields(ParallelConfig)}
    shared["placement_group"] = _group()
    parallel = ParallelConfig(**{name: value for name, value in shared.items() if value is not None})
    scheduler = SchedulerConfig(
        max_model_len=asked.max_model_len,
        is_encoder_decoder=False,
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
    )
    vllm: Any = SimpleNamespace(parallel_config=parallel)
    return {
        "executor": Executor.get_class(vllm).__name__,
        "gpus": parallel.world_size,
        "batched_tokens": scheduler.max_num_batched_tokens,
    }


def unnamed(tensor_parallel: int) -> str:
    """The executor that vLLM takes here where none is named."""
    from vllm.config import ParallelConfig

    return str(ParallelConfig(tensor_parallel_size=tensor_parallel).distributed_executor_backend)


def _group() -> Any:
    import ray

    return ray.util.get_current_placement_group()


class Onlooker:
    """Stands for an engine, in its actor: writes what it sees to a file."""

    dead = False

    def __init__(self, file: Path, engines: Mapping[str, VllmSettings], name: str) -> None:
        self.name = name
        seen = {
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","),
            "in a placement group": _group() is not None,
            "engines": {place: engine_of(settings) for place, settings in engines.items()},
            "unnamed": unnamed(4) if engines else "",
        }
        file.write_text(json.dumps(seen), encoding="utf-8")

    version = 0

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass
