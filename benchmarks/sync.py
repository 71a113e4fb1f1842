"""How fast do new weights come from the trainer to its engines, against a copy of as many bytes in memory?

    python benchmarks/sync.py [scenes=1:0,1:1,1:2,1:3,2:1,4:1] [layers=10] [hidden=768] [out=FILE.json]

A scene is ENGINES:ZERO, engines that sample and the trainer's ZeRO stage. Each is a crew of the tiny world as a run has
it (Ray, vLLM's engines, DeepSpeed ranks, transport `shm`), but with a policy of random weights that is large enough to
be measured; nothing is sampled. An engine takes 1.7 GB and the model. A sync is all that a run waits for: gathering,
the checksum on both sides, the file in shared memory, loading, and the emptied prefix cache. GB/s are of the model,
once however many engines there are; a copy is numpy's, by one thread, measured before each sync. The first sync is not
counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from capo_ray.config.block import Block, setting
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import read_own
from capo_ray.config.run import Config
from capo_ray.program import run_program

Figures = dict[str, float]


class Settings(Block):
    """Of this program."""

    scenes: tuple[str, ...] = setting("ENGINES:ZERO, one after another", ("1:0", "1:1", "1:2", "1:3", "2:1", "4:1"))
    ranks: int = setting("of the trainer", 2, gt=0)
    syncs: int = setting("that are counted, of each scene", 5, gt=0)
    hidden: int = setting("width of the policy", 768, gt=0)
    layers: int = setting("of the policy", 10, gt=0)
    out: Path | None = setting("JSON with every figure", None)


def config_of(given: Settings, scene: str, folder: Path) -> Config:
    """Raises ConfigError."""
    engines, _, zero = scene.partition(":")
    if not engines.isdecimal() or zero not in {"0", "1", "2", "3"}:
        raise ConfigError(f"scenes: {scene!r} is not ENGINES:ZERO, such as 2:1")
    return compose(
        [
            *("+experiment=tiny_cpu", "critic=null", "algorithm=grpo", "data.evaluation_prompts=0"),
            *("tracking.wandb=off", "tracking.tensorboard=false", f"run_dir={folder}", f"policy.path={folder}/policy"),
            *(f"rollout.workers={engines}", f"trainer.zero_stage={zero}", f"trainer.ranks={given.ranks}"),
        ]
    )


def make_policy(given: Settings, folder: Path) -> int:
    """The tiny policy with more and wider layers, and random weights; their bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tiny = Path(__file__).resolve().parents[1] / "capo_ray" / "assets" / "tiny_policy"
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    shape = {"hidden_size": given.hidden, "intermediate_size": 3 * given.hidden, "num_hidden_layers": given.layers}
    heads = max(1, given.hidden // 64)
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": given.hidden // heads}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny, **shape), dtype=torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.nbytes for parameter in model.parameters())


async def measured(given: Settings, config: Config, folder: Path, size: int) -> list[tuple[float, float]]:
    """Seconds of each sync, and of a copy just before it."""
    from capo_ray.cluster.session import ray_session
    from capo_ray.records.tracking import Tracker
    from capo_ray.training.build import prepare, running_crew

    found, seconds = prepare(config, folder), []
    tracker = Tracker(folder, config.tracking, run_name="sync", resolved_config={}, total_steps=1, console=False)
    try:
        with ray_session(config.cluster, logs=folder / "logs"):
            async with running_crew(config, found, folder, tracker) as crew:
                for version in range(given.syncs + 1):
                    copied = copy_s(size)
                    start = perf_counter()
                    await crew.sync(version)
                    seconds.append((perf_counter() - start, copied))
    finally:
        tracker.finish()
    return seconds[1:]


def copy_s(size: int) -> float:
    """Of as many bytes, to memory that is there."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)  # zeros would be given memory in the copy
    start = perf_counter()
    np.copyto(target, source)
    return perf_counter() - start


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    with tempfile.TemporaryDirectory(prefix="sync-") as home:
        configs = {scene: config_of(given, scene, Path(home) / scene.replace(":", "-")) for scene in given.scenes}
        made: dict[str, Any] = {"settings": given.model_dump(mode="json"), "cores": os.cpu_count()}
        print("engines:ZeRO    GB/s    of a copy    seconds of a sync    GB    load")
        for scene, config in configs.items():
            folder = Path(str(config.run_dir))
            size = make_policy(given, folder / "policy")
            seconds = asyncio.run(measured(given, config, folder, size))
            took, ratio = median(sync for sync, _ in seconds), median(copy / sync for sync, copy in seconds)
            row = {"gb_per_s": size / took / 1e9, "of_a_copy": ratio, "seconds": took, "gb": size / 1e9}
            made[scene] = row | {"all": seconds, "load": os.getloadavg()[0]}
            shown = f"{row['gb_per_s']:7.2f} {ratio:12.3f} {took:20.2f} {row['gb']:5.2f} {os.getloadavg()[0]:7.1f}"
            print(f"{scene:12} {shown}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True))
