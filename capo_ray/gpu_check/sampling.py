"""A rollout engine on vLLM: how long it takes to start, and tokens a second of sampling and of reading prompts.

The engine is the project's own VllmRollout, with a 1B shape and random weights. Leaves out weight sync (`syncing`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capo_ray.config.blocks import Rollout
from capo_ray.gpu_check.notes import Notes
from capo_ray.gpu_check.shapes import MODELS, Dtype, write_model
from capo_ray.planning.bundles import actor_name
from capo_ray.types import Prompt, Sampling

if TYPE_CHECKING:
    from capo_ray.engines.rollout_vllm import VllmRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine is asked."""

    model: str
    dtype: Dtype
    prompt_tokens: int
    responses: int
    response_tokens: int
    long_prompts: int
    long_tokens: int


LOADS = {
    "gpu": Load(
        model="1B",
        dtype="bfloat16",
        prompt_tokens=128,
        responses=256,
        response_tokens=256,
        long_prompts=32,
        long_tokens=4096,
    ),
    "cpu": Load(
        model="tiny",
        dtype="float32",
        prompt_tokens=16,
        responses=16,
        response_tokens=32,
        long_prompts=8,
        long_tokens=256,
    ),
}
GPU_SHARE = 0.6
"""Of a card's memory, for the engine."""


def work(notes: Notes) -> None:
    asyncio.run(_measure(notes, LOADS[notes.device]))


async def _measure(notes: Notes, load: Load) -> None:
    notes.put(model=load.model, responses=load.responses)
    notes.say("a model with random weights")
    folder = write_model(notes.scratch / "model", MODELS[load.model], dtype=load.dtype, seed=0)
    notes.say("start of the engine")
    begun = time.perf_counter()
    engine = open_rollout(notes, folder, load.dtype, share=GPU_SHARE, window=load.long_tokens + load.response_tokens)
    notes.put(start_seconds=round(time.perf_counter() - begun, 1))
    try:
        short = prompts(load.responses, load.prompt_tokens, MODELS[load.model]["vocab_size"], seed=1)
        long = prompts(load.long_prompts, load.long_tokens, MODELS[load.model]["vocab_size"], seed=2)
        notes.say("warm-up")
        await _sample(engine, short[:4], load.response_tokens)
        notes.say(f"sampling {load.responses} x {load.response_tokens} tokens")
        generated, seconds = await _sample(engine, short, load.response_tokens)
        notes.put(sampled_tokens=generated, sampled_tokens_per_second=round(generated / seconds, 1))
        notes.say(f"reading {load.long_prompts} prompts of {load.long_tokens:,} tokens")
        _, seconds = await _sample(engine, long, 1)
        read = load.long_prompts * load.long_tokens
        notes.put(prompt_tokens=read, prompt_tokens_per_second=round(read / seconds, 1))
    finally:
        engine.close()


def open_rollout(
    notes: Notes, folder: str, dtype: Dtype, *, share: float, window: int, transport: str | None = None
) -> VllmRollout:
    from capo_ray.engines.rollout_vllm import VllmRollout
    from capo_ray.engines.vllm_settings import VllmSettings

    return VllmRollout(
        VllmSettings(
            block=Rollout(max_response_tokens=window, gpu_memory_share=share, eager=not notes.on_gpu),
            model=folder,
            tokenizer=folder,
            dtype=dtype,
            window=window,
            device=notes.device,
            weight_transfer=transport,
        ),
        name=actor_name("rollout", 0),
    )


def prompts(count: int, tokens: int, vocabulary: int, *, seed: int) -> list[Prompt]:
    """Of random ids, no two alike, so that nothing of them comes from a cache."""
    ids = random.Random(seed)
    return [
        Prompt(id=f"{seed}/{n}", question="", token_ids=tuple(ids.choices(range(vocabulary), k=tokens)), answer="")
        for n in range(count)
    ]


async def _sample(engine: VllmRollout, asked: Sequence[Prompt], tokens: int) -> tuple[int, float]:
    """Tokens that were sampled, one response to each prompt, and the seconds by the clock."""

    async def one(prompt: Prompt, seed: int) -> int:
        sampling = Sampling(max_tokens=tokens)
        return sum([len(rollout.token_ids) async for rollout in engine.generate(prompt, sampling, {0: seed})])

    begun = time.perf_counter()
    counts = await asyncio.gather(*(one(prompt, seed) for seed, prompt in enumerate(asked)))
    return sum(counts), time.perf_counter() - begun
