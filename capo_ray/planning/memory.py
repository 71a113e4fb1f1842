"""Memory that engines and trainer ranks need, worked out from the shapes of their models.

Bytes per parameter are those of real DeepSpeed ranks and activations those of a traced forward and backward pass, both
kept honest by tests/planning/test_plan_memory.py; what only a card has (CUDA, NCCL, vLLM's own) is assumed. Leaves out
how many engines and ranks there are and where they go (plan).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capo_ray.config.blocks import Rollout, Trainer
from capo_ray.config.critic import Voter
from capo_ray.config.lora import held_rank
from capo_ray.config.model import Shape
from capo_ray.config.run import Config
from capo_ray.planning.bundles import critics_here
from capo_ray.planning.quantized import IN_FILES, quantization_of

GIB = 1 << 30
ENGINE_GPU_GIB = 2.5
"""What vLLM takes beside weights and KV cache: activations of 8,192 tokens, graphs, the CUDA context. Assumed."""
ENGINE_CPU_GIB = 2.4
"""Resident memory of a CPU engine and its actor, before weights and KV cache."""
TRAINER_CPU_GIB = 0.9
CUDA_GIB = 1.0
"""A process's CUDA context, cuBLAS's workspace and the allocator's fragments. Assumed."""
NCCL_GIB = 0.5
"""Buffers of one NCCL communicator. Assumed."""
ASLEEP_GIB = 1.5
"""What an engine that sleeps leaves on its GPU, beside NCCL's buffers: the CUDA context, and its graphs. Assumed; vLLM
says that over nine tenths come free."""
BUCKET = 500_000_000
"""Numbers in DeepSpeed's reduce bucket (`reduce_bucket_size`), which ZeRO 2 and 3 allocate whole."""
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 has gathered at a time, at most (`stage3_max_live_parameters`)."""
SYNC_BYTES = 1 << 28
"""One piece of a weight sync between GPUs (engines.weights_gpu); a larger tensor is a piece alone."""
PIECE_ELEMENTS = 1 << 26
"""Logits that learn.head holds at a time unless trainer.head_tokens says otherwise."""
BYTES = {"float32": 4, "bfloat16": 2}
QUANTISED = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel"), 1.0),
    **dict.fromkeys(("mxfp8", "modelopt", "modelopt_mxfp8", "int8_per_channel_weight_only"), 1.0),
    **dict.fromkeys(IN_FILES, 0.56),
    **dict.fromkeys(("mxfp4", "modelopt_fp4", "nvfp4_per_token"), 0.56),
}
"""Bytes of a weight of a linear layer by vLLM's `quantization`, scales included; embedding and head keep their type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes per parameter on one rank."""

    weights: float
    optimizer: float
    gradients: float
    """While micro-batches are summed up."""
    step: float
    """More than that in the optimizer step, when the activations are gone."""


def bytes_held(stage: int, ranks: int, width: int) -> Held:
    """What DeepSpeed 0.19 holds. In bfloat16 (`width` 2) there are float32 weights beside AdamW's two moments; sums of
    gradients are float32 from stage 1 on, and cut over the ranks from stage 2 on."""
    if stage == 0:
        return Held(weights=width, optimizer=12 if width == 2 else 8, gradients=width, step=4 if width == 2 else 0)
    if stage == 1:
        gradients = 4 + width if width == 2 else 4
        return Held(weights=width, optimizer=12 / ranks, gradients=gradients, step=0 if width == 2 else 4 / ranks)
    return Held(
        weights=width if stage == 2 else width / ranks, optimizer=12 / ranks, gradients=4 / ranks, step=4 / ranks
    )


def activation_bytes(
    shape: Shape, width: int, tokens: int, *, checkpointing: bool, head_tokens: int | None = None, entropy: bool = False
) -> float:
    """Most that a forward and backward pass over `tokens` keeps, when every token carries loss; `entropy`: whether that
    of a token has a gradient.

    A decoder layer of transformers' Llama or Qwen keeps its norms in float32 and both factors of every product, also
    where an adapter alone learns."""
    hidden, layers = shape.hidden_size, shape.layers
    layer = tokens * (width * (8.5 * hidden + 4 * _mlp_width(shape)) + 8 * hidden)
    piece = head_tokens or max(1, PIECE_ELEMENTS // shape.vocabulary)
    head = _head_bytes(shape, width, tokens, piece, entropy=entropy)
    if not checkpointing:
        return layers * layer + head
    return layers * tokens * width * hidden + max(head, 1.5 * layer)


def _mlp_width(shape: Shape) -> float:
    """Of a Llama or Qwen, read off the number of parameters."""
    hidden = shape.hidden_size
    per_layer = (shape.parameters - shape.vocabulary * hidden) / shape.layers
    return max(hidden, (per_layer - 2 * hidden * (hidden + shape.key_value_size)) / (3 * hidden))


def learning(trainer: Trainer, shape: Shape) -> float:
    """Parameters that have gradients and moments: all, or those of adapters to the linear layers of a Llama or Qwen. A
    layer of another name counts as the largest of these."""
    if (lora := trainer.lora) is None:
        return shape.parameters
    hidden, widest = shape.hidden_size, shape.hidden_size + _mlp_width(shape)
    both_sides = {
        **dict.fromkeys(("q_proj", "o_proj"), 2 * hidden),
        **dict.fromkeys(("k_proj", "v_proj"), hidden + shape.key_value_size),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), widest),
    }
    return shape.layers * lora.rank * sum(both_sides.get(name, widest) for name in set(lora.targets or both_sides))


def checkpoint_gib(config: Config, shape: Shape) -> float:
    """Of what learns the float32 weights and AdamW's moments, 12 bytes of each number."""
    return 12 * learning(config.trainer, shape) / GIB


def _head_bytes(shape: Shape, width: int, tokens: int, piece: int, *, entropy: bool) -> float:
    """Of learn.head's backward pass: float32 logits and what their gradient is put together from; beyond one piece the
    hidden states with their gradient, and the sum of the weights' gradient in float32, cast when it is whole."""
    logits = min(tokens, piece) * shape.vocabulary
    if tokens <= piece:
        return (8 + width + 8 * entropy) * logits
    sums = (4 + width) * shape.vocabulary * shape.hidden_size
    return 2 * width * tokens * shape.hidden_size + max(sums, 4 * shape.vocabulary * shape.hidden_size + 14 * logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """GiB by purpose on one trainer rank."""

    process: dict[str, float]
    """As long as it runs."""
    held: dict[str, float]
    """From one update to the next."""
    passing: dict[str, float]
    """One after the other."""
    host: dict[str, float]
    """In the memory of its host, off its GPU (`trainer.offload`)."""

    def most(self, *passing: str) -> dict[str, float]:
        """At the time at which it holds most, or the most of the times that are named."""
        times = {name: self.passing[name] for name in passing or self.passing if name in self.passing}
        if not times:
            return self.held | self.process
        most = max(times, key=lambda name: times[name])
        return self.held | {most: times[most]} | self.process


def rank_memory(
    trainer: Trainer,
    shape: Shape | None,
    dtype: str,
    *,
    reference: bool,
    on_cpu: bool,
    transfer: str = "",
    entropy: bool = False,
) -> Rank:
    """Of one rank, which keeps activations, steps the optimizer, and sends weights to engines (`transfer`: nccl or
    ipc); `entropy`: whether there is a bonus for it."""
    process = {"process": TRAINER_CPU_GIB} if on_cpu else {"CUDA": CUDA_GIB}
    if not on_cpu and (groups := (trainer.ranks > 1) + (transfer == "nccl")):
        process["NCCL"] = NCCL_GIB * groups
    if shape is None:
        return Rank(process=process, held={}, passing={}, host={})
    width, number, learns = BYTES[dtype], shape.parameters / GIB, learning(trainer, shape) / GIB
    each = bytes_held(trainer.zero_stage, trainer.ranks, width)
    memory = {
        "weights": number * each.weights,
        "gradients": learns * each.gradients,
        "optimizer": learns * each.optimizer,
    }
    if trainer.lora is not None:
        memory["adapter"] = learns * each.weights
    elif reference:  # an adapter is left out for it
        memory["reference"] = number * each.weights
    if not on_cpu:
        memory["buffers"] = _buffers(trainer, shape, width)
    tokens = trainer.tokens_per_micro_batch
    again, piece = trainer.gradient_checkpointing, trainer.head_tokens
    activations = activation_bytes(shape, width, tokens, checkpointing=again, head_tokens=piece, entropy=entropy)
    passing = {"activations": activations / GIB, "optimizer step": learns * each.step}
    if transfer in ("nccl", "ipc"):  # a copy of the tensor, and the piece that it goes into
        passing["weight sync"] = 2 * max(SYNC_BYTES, width * shape.vocabulary * shape.hidden_size) / GIB
    off = set() if on_cpu else _off_gpu(trainer)
    host = {name: memory.pop(name) for name in list(memory) if name in off}
    if host:
        host["optimizer step"] = passing.pop("optimizer step")
    return Rank(process=process, held=memory, passing=passing, host=host)


def _off_gpu(trainer: Trainer) -> set[str]:
    """What of a rank's memory `trainer.offload` moves. The optimizer takes the sums of gradients along, from stage 2
    on, where they are in pieces; assumed, since no GPU has shown it."""
    if trainer.offload == "none":
        return set()
    off = {"optimizer", "gradients"} if trainer.zero_stage >= 2 else {"optimizer"}
    return off | {"weights", "adapter", "reference"} if trainer.offload == "all" else off


def _buffers(trainer: Trainer, shape: Shape, width: int) -> float:
    """GiB of DeepSpeed's reduce bucket, and of parameters that ZeRO-3 has gathered."""
    bucket = BUCKET if trainer.zero_stage >= 2 or (trainer.zero_stage and trainer.ranks > 1) else 0
    in_pieces = trainer.zero_stage == 3 and (trainer.ranks > 1 or trainer.offload == "all")
    gathered = min(shape.parameters, LIVE) if in_pieces else 0
    return (bucket + gathered) * width / GIB


def rank_of(config: Config, shape: Shape | None) -> Rank:
    """One trainer rank of a run."""
    return rank_memory(
        config.trainer,
        shape,
        config.policy.dtype,
        reference=config.algorithm.kl_weight > 0,
        on_cpu=config.cluster.device == "cpu",
        transfer=config.cluster.weight_transfer,
        entropy=config.algorithm.entropy_weight > 0,
    )


def trainer_memory(config: Config, shape: Shape | None) -> dict[str, float]:
    """GiB by purpose on one trainer rank of a run, at its most."""
    return rank_of(config, shape).most()


def weight_bytes(shape: Shape, dtype: str, quantization: str | None = None) -> float:
    """Of a model as an engine holds it, over all its GPUs."""
    plain = BYTES[dtype]
    ends = min(shape.parameters, 2 * shape.vocabulary * shape.hidden_size)
    return ends * plain + (shape.parameters - ends) * QUANTISED.get(quantization or "", plain)


def asleep_gib(engine: Rollout | Voter) -> float:
    """What an engine that sleeps holds of each of its GPUs."""
    return ASLEEP_GIB + (NCCL_GIB if engine.tensor_parallel > 1 else 0)


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Of one GPU of an engine, or of one engine process on CPU."""

    gib: dict[str, float]
    """By purpose."""
    note: str = ""
    faults: tuple[str, ...] = ()


def engines_memory(config: Config, shapes: Mapping[str, Shape | None], gpu_gib: float) -> dict[str, EngineMemory]:
    """Of every engine of a run, by its place in the configuration. `shapes`: where the configuration names none."""
    policy = config.policy.shape or shapes.get("policy")
    window = config.rollout_window or (policy.window if policy else 0)
    made = {"rollout": engine_memory(config, config.rollout, policy, config.policy.dtype, window, gpu_gib, "rollout")}
    for place, voter in critics_here(config):
        assert voter.model is not None
        critic = voter.model.shape or shapes.get(place)
        window = voter.window or (critic.window if critic else 0)
        made[place] = engine_memory(config, voter, critic, voter.model.dtype, window, gpu_gib, place)
    return made


def engine_memory(
    config: Config, engine: Rollout | Voter, shape: Shape | None, dtype: str, window: int, gpu_gib: float, role: str
) -> EngineMemory:
    """Of the engine at the place `role`, on GPUs of `gpu_gib`."""
    on_cpu = config.cluster.device == "cpu"
    parts = engine.tensor_parallel
    base = ENGINE_CPU_GIB if on_cpu else ENGINE_GPU_GIB + (NCCL_GIB if parts > 1 else 0)
    if shape is None:
        known = {"engine": base} | ({"KV cache": engine.kv_cache_gib} if on_cpu else {})
        return EngineMemory(known, "the model's shape is not known here: its weights come on top")
    weights = weight_bytes(shape, dtype, quantization_of(engine)) / parts / GIB
    per_sequence = 2 * shape.layers * shape.key_value_size * BYTES[dtype] * window / parts / GIB
    adapter = {}
    if role == "rollout" and (lora := config.trainer.lora) and config.cluster.lora_sync == "adapter":
        room = lora.model_copy(update={"rank": held_rank(lora.rank), "targets": None})  # whichever layers have one
        adapter = {"adapter": learning(config.trainer.model_copy(update={"lora": room}), shape) * BYTES[dtype] / GIB}
    left = engine.gpu_memory_share * gpu_gib - weights - base - sum(adapter.values())
    cache = engine.kv_cache_gib if on_cpu else left
    memory = {"weights": weights, **adapter, "engine": base, "KV cache": max(0.0, cache)}
    if cache < per_sequence:
        if on_cpu:
            advice = f"raise {role}.kv_cache_gib to {math.ceil(per_sequence)}"
        else:
            advice = f"raise {role}.tensor_parallel above {parts}"
            if engine.gpu_memory_share < 0.9:
                advice += f" or {role}.gpu_memory_share above {engine.gpu_memory_share:g}"
        where = "process" if on_cpu else "GPU"
        fault = (
            f"{role}: {max(0.0, cache):.1f} GiB of KV cache are left per {where}, one sequence of {window} tokens "
            f"needs {per_sequence:.2f} (weights {weights:.1f} GiB); {advice}"
        )
        return EngineMemory(memory, faults=(fault,))
    num = int(cache / per_sequence) if per_sequence else engine.max_sequences
    note = f"room for {min(num, 10**6):,} sequences of {window:,} tokens, up to {engine.max_sequences} run"
    return EngineMemory(memory, note)


def ways_to_save(config: Config, *, passing: bool) -> list[str]:
    """What makes a trainer rank smaller and is not set already. `passing`: activations are a part of its most."""
    trainer, longest = config.trainer, config.data.max_prompt_tokens + config.rollout.max_response_tokens
    ways = []
    if passing and not trainer.gradient_checkpointing:
        ways.append("set trainer.gradient_checkpointing=true")
    if passing and trainer.tokens_per_micro_batch > longest:
        ways.append(f"lower trainer.tokens_per_micro_batch (not below {longest})")
    if trainer.zero_stage < 3 and trainer.ranks > 1:
        ways.append("raise trainer.zero_stage")
    more = {"none": "optimizer" if trainer.zero_stage else "", "optimizer": "all" if trainer.zero_stage == 3 else ""}
    if further := more.get(trainer.offload):
        ways.append(f"set trainer.offload={further}")
    if trainer.lora is None:
        ways.append("set trainer.lora.rank=16 (an adapter learns)")
    return [*ways, "add trainer.ranks" + (" and rollout.workers" if config.cluster.sharing != "apart" else "")]


def in_words(memory: Mapping[Any, float]) -> str:
    return " + ".join(f"{name} {gib:.1f}" for name, gib in memory.items() if gib >= 0.05)
