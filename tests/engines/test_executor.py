"""What vLLM would do with the GPUs of every engine of every experiment, asked of vLLM's own configuration inside a
placement group of the product's; Ray is real, the GPUs are pretended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pretended_gpus import Onlooker, ray_with_gpus

from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.run import Config
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.planning.bundles import critics_here, seats
from capo_ray.training.settings import critic_engine_settings, rollout_settings

FILES: Any = SimpleNamespace(folder="/models/m", tokenizer="/models/m")


def on_gpus() -> dict[str, Config]:
    """The experiments of conf/ that run on GPUs; supervised ones have no engines."""
    names = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
    found = {name: compose([f"+experiment={name}"]) for name in names if not name.endswith("_sft")}
    return {name: config for name, config in found.items() if config.cluster.device == "gpu"}


def of_other_sizes() -> dict[str, Config]:
    """One experiment of each."""
    sizes = {"two_nodes": "llama3b_intersection", "one_node_fp8": "llama3b_intersection", "one_gpu": "llama1b_grpo"}
    sizes |= dict.fromkeys(("one_gpu_80gb", "one_gpu_24gb", "one_node_turns"), "qwen1_5b_intersection")
    assert sizes.keys() == {path.stem for path in (conf_dir() / "size").glob("*.yaml")}
    return {f"{name}, {size}": compose([f"+experiment={name}", f"+size={size}"]) for size, name in sizes.items()}


def engines_of(name: str, config: Config) -> Iterator[tuple[str, VllmSettings, int]]:
    """(place, settings, GPUs) of each engine that differs."""
    given = {seat.role: seat.gpus for seat in seats(config)[1]}
    yield f"{name}: rollout", rollout_settings(config, FILES), given["rollout"]
    for place, voter in critics_here(config):
        settings = critic_engine_settings(config, voter, FILES)
        yield f"{name}: {place}", replace(settings, window=voter.known_window), given["critic"]


@pytest.mark.ray
def test_vllm_takes_the_gpus_of_its_own_actor_for_every_engine_of_every_experiment(tmp_path: Path) -> None:
    from capo_ray.cluster.placement import Team

    found = on_gpus()
    assert len(found) == 28
    found |= of_other_sizes()
    engines = [engine for name, config in found.items() for engine in engines_of(name, config)]
    asked = {place: settings for place, settings, _ in engines}
    config = compose(
        ["+experiment=llama3b_intersection", "rollout.workers=1", "critic.workers=1", "critic.tensor_parallel=4"]
    )

    async def look() -> None:
        async with Team(config, "looks", ["rollout", "critic"]) as team:
            team.hire("rollout", lambda seat: (partial(Onlooker, tmp_path / "rollout", {}, seat.name),))
            team.hire("critic", lambda seat: (partial(Onlooker, tmp_path / "critic", asked, seat.name),))
            await team.ready()

    with ray_with_gpus(5, logs=tmp_path / "logs"):
        asyncio.run(look())
    rollout, critic = (json.loads((tmp_path / role).read_text()) for role in ("rollout", "critic"))
    assert rollout["in a placement group"] and critic["in a placement group"]
    assert (len(set(rollout["visible"])), len(set(critic["visible"]))) == (1, 4)
    assert critic["unnamed"] == "ray"  # what vLLM takes when it is left to what it finds around it
    for place, settings, gpus in engines:
        executor = "UniProcExecutor" if settings.block.tensor_parallel == 1 else "MultiprocExecutor"
        assert critic["engines"][place] == {"executor": executor, "gpus": gpus, "batched_tokens": 8192}, place
