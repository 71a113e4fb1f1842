"""Memory that engines and trainer ranks need, estimated from model shapes; good to about a fifth.

Leaves out how many of them there are and where they go (plan).
"""

from __future__ import annotations

import math

from capo_ray.config.blocks import Rollout, Shape, Trainer
from capo_ray.config.critic import Voter
from capo_ray.config.run import Config

GIB = 1 << 30
ENGINE_GPU_GIB = 2.5
"""What vLLM takes beside weights and KV cache: activations, graphs, the CUDA context."""
ENGINE_CPU_GIB = 2.4
"""Resident memory of a CPU engine and its actor, before weights and KV cache."""
TRAINER_CPU_GIB = 0.9
BYTES = {"float32": 4, "bfloat16": 2}


def engine_memory(
    config: Config, engine: Rollout | Voter, shape: Shape | None, dtype: str, window: int, gpu_gib: float, role: str
) -> tuple[dict[str, float], str, list[str]]:
    """(GiB by purpose, note, faults) of one GPU of an engine, or of one engine process on CPU."""
    on_cpu = config.cluster.device == "cpu"
    base = ENGINE_CPU_GIB if on_cpu else ENGINE_GPU_GIB
    if shape is None:
        known = {"engine": base} | ({"KV cache": engine.kv_cache_gib} if on_cpu else {})
        return known, "the model's shape is not known here: its weights come on top", []
    parts = engine.tensor_parallel
    weights = shape.parameters * BYTES[dtype] / parts / GIB
    per_sequence = 2 * shape.layers * shape.key_value_size * BYTES[dtype] * window / parts / GIB
    cache = engine.kv_cache_gib if on_cpu else engine.gpu_memory_share * gpu_gib - weights - base
    memory = {"weights": weights, "engine": base, "KV cache": max(0.0, cache)}
    if cache < per_sequence:
        if on_cpu:
            advice = f"raise {role}.kv_cache_gib to {math.ceil(per_sequence)}"
        else:
            advice = f"raise {role}.tensor_parallel above {parts} or {role}.gpu_memory_share"
        where = "process" if on_cpu else "GPU"
        fault = (
            f"{role}: {max(0.0, cache):.1f} GiB of KV cache are left per {where}, one sequence of {window} tokens "
            f"needs {per_sequence:.2f} (weights {weights:.1f} GiB); {advice}"
        )
        return memory, "", [fault]
    num = int(cache / per_sequence) if per_sequence else engine.max_sequences
    return memory, f"room for {min(num, 10**6):,} sequences of {window:,} tokens, up to {engine.max_sequences} run", []


def trainer_memory(config: Config, shape: Shape | None) -> dict[str, float]:
    """GiB by purpose on one trainer rank of a run."""
    return rank_memory(
        config.trainer,
        shape,
        config.policy.dtype,
        reference=config.algorithm.kl_weight > 0,
        on_cpu=config.cluster.device == "cpu",
    )


def rank_memory(
    trainer: Trainer, shape: Shape | None, dtype: str, *, reference: bool, on_cpu: bool
) -> dict[str, float]:
    """GiB by purpose on one rank. In bfloat16 the optimizer keeps float32 weights beside its two moments."""
    process = {"process": TRAINER_CPU_GIB} if on_cpu else {}
    if shape is None:
        return process
    width = BYTES[dtype]
    stage, ranks, number = trainer.zero_stage, trainer.ranks, shape.parameters / GIB
    tokens = trainer.tokens_per_micro_batch / GIB
    per_layer = 17 * width  # bytes kept per token and unit of hidden size: attention and a gated MLP
    kept = width * shape.layers + per_layer if trainer.gradient_checkpointing else per_layer * shape.layers
    memory = {
        "weights": number * width / (ranks if stage == 3 else 1),
        "gradients": number * width / (ranks if stage >= 2 else 1),
        "optimizer": number * (8 if width == 4 else 12) / (ranks if stage >= 1 else 1),
        "activations": tokens * shape.hidden_size * kept + tokens * shape.vocabulary * (width + 4),
    }
    if reference:
        memory["reference"] = number * width / (ranks if stage == 3 else 1)
    return memory | process
