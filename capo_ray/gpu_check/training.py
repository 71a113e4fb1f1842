"""Steps of the trainer on one rank, in bf16, at two lengths of sequence: tokens a second, MFU, and peak memory beside
what the plan says of the same, and what the device did in one more step of the longer one.

The rank is the project's own DeepSpeedEngine, with checkpointing and without a reference model; a step is one sequence,
forward, backward and AdamW. Leaves out more ranks than one.
"""

from __future__ import annotations

import random
import resource
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from capo_ray.config.blocks import Trainer
from capo_ray.config.method import Algorithm
from capo_ray.config.model import Shape
from capo_ray.gpu_check.notes import Notes, first_line
from capo_ray.gpu_check.shapes import MODELS, flops_per_token, shape_of
from capo_ray.planning.memory import GIB, rank_memory
from capo_ray.types import TrainSequence, Update

if TYPE_CHECKING:
    from capo_ray.engines.protocols import UpdateBatch
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

PROMPT = 16
"""Tokens that carry no loss."""
WARM_UP, TIMED = 1, 3
MOST = 8
"""Operations that a profile names."""
LENGTHS = {"gpu": (2048, 8192), "cpu": (64, 128)}
"""Tokens of a sequence."""
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}
"""Of dense bf16 products, by what NVIDIA's data sheets say of the card; the first name that stands in the card's."""


def work(notes: Notes, model: str) -> None:
    config = MODELS[model if notes.on_gpu else "tiny"]
    shape = shape_of(config)
    lengths = LENGTHS[notes.device]
    trainer = Trainer(
        learning_rate=1e-6, zero_stage=2, tokens_per_micro_batch=max(lengths), gradient_checkpointing=True
    )
    notes.put(model=model if notes.on_gpu else "tiny", parameters=shape.parameters, card=_card(notes))
    notes.say("import of DeepSpeed")
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    notes.say("the model with random weights")
    begun = time.perf_counter()
    engine = DeepSpeedEngine(
        config,
        trainer=trainer,
        algorithm=Algorithm(kl_weight=0.0),
        total_steps=100,
        device=notes.device,
        dtype="bfloat16",
    )
    notes.put(start_seconds=round(time.perf_counter() - begun, 1))
    failures = []
    for tokens in lengths:
        notes.say(f"{tokens:,} tokens")
        row = _row(notes, engine, shape, trainer, tokens)
        notes.add("steps", row)
        if row["error"]:
            failures.append(f"{tokens:,} tokens: {row['error']}")
    if not failures:
        notes.say("a step under the profiler")
        notes.put(profile=_profile(notes, engine, shape, max(lengths)))
    engine.close()
    if failures:
        raise RuntimeError("; ".join(failures))


def _row(notes: Notes, engine: DeepSpeedEngine, shape: Shape, trainer: Trainer, tokens: int) -> dict[str, Any]:
    planned = rank_memory(
        trainer.model_copy(update={"tokens_per_micro_batch": tokens}),
        shape,
        "bfloat16",
        reference=False,
        on_cpu=not notes.on_gpu,
    ).most()
    row: dict[str, Any] = {"tokens": tokens, "planned_gib": round(sum(planned.values()), 2), "error": ""}
    _forget_peak(notes)
    try:
        seconds = _seconds_per_step(notes, engine, shape, tokens)
    except RuntimeError as error:  # of which CUDA's out of memory is one
        return row | _peak(notes) | {"error": first_line(error)}
    rate = tokens / seconds
    row |= {"seconds": round(seconds, 4), "tokens_per_second": round(rate, 1), "mfu": None} | _peak(notes)
    if peak := peak_flops(_card(notes)):
        row["mfu"] = round(rate * flops_per_token(shape, tokens) / peak, 4)
    return row


def _seconds_per_step(notes: Notes, engine: DeepSpeedEngine, shape: Shape, tokens: int) -> float:
    """The median of the timed ones."""
    seconds = []
    for step in range(WARM_UP + TIMED):
        batch = batch_of(shape, tokens, seed=step)
        _finish(notes)
        begun = time.perf_counter()
        update = engine.update(batch)
        _finish(notes)
        seconds.append(time.perf_counter() - begun)
        refuse_nonfinite(update)
        notes.say(f"{tokens:,} tokens, step {step + 1} of {WARM_UP + TIMED}")
    return median(seconds[WARM_UP:])


def _profile(notes: Notes, engine: DeepSpeedEngine, shape: Shape, tokens: int) -> dict[str, Any]:
    """`busy`: the share of a step in which the device had something to do; the rest it waited for Python. `most`: what
    took longest on it, in seconds."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if notes.on_gpu else [])]
    batch = batch_of(shape, tokens, seed=0)
    _finish(notes)
    with profile(activities=activities) as profiler:
        begun = time.perf_counter()
        engine.update(batch)
        _finish(notes)
        seconds = time.perf_counter() - begun
    kind = DeviceType.CUDA if notes.on_gpu else DeviceType.CPU  # what Python calls has the time of its kernels as well
    spent = {
        row.key: (row.self_device_time_total if notes.on_gpu else row.self_cpu_time_total) / 1e6
        for row in profiler.key_averages()
        if row.device_type == kind and not row.is_user_annotation
    }
    most = sorted(spent, key=lambda name: -spent[name])[:MOST]
    return {
        "seconds": round(seconds, 4),
        "busy": round(sum(spent.values()) / seconds, 3),
        "most": {name[:80]: round(spent[name], 5) for name in most},
    }


def refuse_nonfinite(update: Update) -> None:
    """Raises RuntimeError where a step was skipped for its gradient: a card that makes no numbers does not train."""
    if update.metrics["nonfinite_steps"]:
        raise RuntimeError("the gradient is not finite, and nothing was trained")


def batch_of(shape: Shape, tokens: int, *, seed: int) -> UpdateBatch:
    """One sequence of random ids, half of whose tokens have a good and half a bad advantage."""
    from capo_ray.engines.protocols import UpdateBatch

    ids = random.Random(seed).choices(range(shape.vocabulary), k=tokens)
    count = tokens - PROMPT
    sequence = TrainSequence(
        prompt_ids=tuple(ids[:PROMPT]),
        token_ids=tuple(ids[PROMPT:]),
        advantages=tuple(1.0 if t % 2 else -1.0 for t in range(count)),
        logprobs=(-10.0,) * count,
    )
    return UpdateBatch(micro_batches=(((sequence,),),), denominators=(1.0,))


def _card(notes: Notes) -> str:
    if not notes.on_gpu:
        return ""
    import torch

    return str(torch.cuda.get_device_name(0))


def peak_flops(card: str) -> float | None:
    """None for a card that is not in the table."""
    return next((flops for name, flops in PEAK_FLOPS.items() if all(part in card for part in name.split())), None)


def _finish(notes: Notes) -> None:
    if notes.on_gpu:
        import torch

        torch.cuda.synchronize()


def _forget_peak(notes: Notes) -> None:
    if notes.on_gpu:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(notes: Notes) -> dict[str, float]:
    """GiB of tensors at the peak, and of the device: with what the allocator holds, the CUDA context and NCCL. On CPU
    both are the most that this process has held, which no step can lower again."""
    if not notes.on_gpu:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        return {"peak_tensors_gib": round(held, 2), "peak_gib": round(held, 2)}
    import torch

    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return {
        "peak_tensors_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_gib": round((torch.cuda.max_memory_reserved() + beside) / GIB, 2),
    }
