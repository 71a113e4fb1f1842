"""An engine that leaves its card to others and comes back: how long it takes, what it gives back, and whether it still
says the same.

Once with its weights kept by the host, as a critic sleeps, and once without, as a rollout engine does; then nothing is
sampled, since no sync brings weights here. Leaves out who sleeps when (a run with `cluster.sharing` turns).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from capo_ray.config.blocks import Rollout
from capo_ray.gpu_check.notes import Notes
from capo_ray.gpu_check.shapes import MODELS, Dtype, write_model
from capo_ray.types import Sampling

if TYPE_CHECKING:
    from capo_ray.engines.vllm_engine import Requests, Sleeps

GPU_SHARE = 0.6
"""Of a card's memory, for the engine."""
WINDOW = 1024


def work(notes: Notes) -> None:
    asyncio.run(_measure(notes))


async def _measure(notes: Notes) -> None:
    from capo_ray.engines.vllm_engine import Requests, Sleeps, open_engine
    from capo_ray.engines.vllm_settings import VllmSettings

    model: tuple[str, Dtype] = ("1B", "bfloat16") if notes.on_gpu else ("tiny", "float32")
    notes.put(model=model[0])
    notes.say("a model with random weights")
    folder = write_model(notes.scratch / "model", MODELS[model[0]], dtype=model[1], seed=0)
    block = Rollout(max_response_tokens=WINDOW, gpu_memory_share=GPU_SHARE, eager=not notes.on_gpu)
    notes.say("start of the engine")
    engine = open_engine(
        VllmSettings(
            block=block,
            model=folder,
            tokenizer=folder,
            dtype=model[1],
            window=WINDOW,
            device=notes.device,
            sleeps=True,
        )
    )
    try:
        requests = Requests(engine, block.max_sequences)
        notes.say("a reply")
        before = await _reply(requests)
        notes.put(awake_gib=_held_gib(notes))
        await _sleep_and_wake(notes, Sleeps(engine, "the engine", keeps=True), "kept")
        notes.say("the same reply")
        if (after := await _reply(requests)) != before:
            raise RuntimeError(f"after its sleep the engine says {after}, and said {before}")
        await _sleep_and_wake(notes, Sleeps(engine, "the engine", keeps=False), "dropped")
    finally:
        engine.shutdown()


async def _reply(requests: Requests) -> list[int]:
    from capo_ray.engines.vllm_engine import parameters_of

    sampling = parameters_of(Sampling(max_tokens=32, temperature=0.0), seed=1, logprobs=False, detokenize=False)
    return list((await requests.run(range(10, 42), sampling)).outputs[0].token_ids)


async def _sleep_and_wake(notes: Notes, engine: Sleeps, weights: str) -> None:
    """Figures begin with what became of the `weights`. Raises WeightsChanged."""
    awake = _held_gib(notes)
    notes.say(f"sleep, its weights {weights}")
    seconds = await _seconds(engine.sleep())
    notes.put(**{f"{weights}_sleep_seconds": seconds, f"{weights}_freed_gib": round(awake - _held_gib(notes), 2)})
    notes.say("awake, weights first")
    notes.put(**{f"{weights}_wake_weights_seconds": await _seconds(engine.wake(["weights"]))})
    notes.put(**{f"{weights}_wake_cache_seconds": await _seconds(engine.wake(["kv_cache"]))})


async def _seconds(change: Awaitable[None]) -> float:
    begun = time.perf_counter()
    await change
    return round(time.perf_counter() - begun, 3)


def _held_gib(notes: Notes) -> float:
    """Of the card; on CPU of the engine's processes."""
    if notes.on_gpu:
        import torch

        free, total = torch.cuda.mem_get_info()
        return round((total - free) / 2**30, 2)
    import psutil

    return round(sum(child.memory_full_info().uss for child in psutil.Process().children(recursive=True)) / 2**30, 2)
