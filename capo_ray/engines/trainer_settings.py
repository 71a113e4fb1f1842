"""From the blocks of the configuration to what the trainer's libraries take."""

from __future__ import annotations

import math
from typing import Any

import torch

from capo_ray.config.block import filled
from capo_ray.config.blocks import Trainer
from capo_ray.config.library import merged
from capo_ray.config.method import Algorithm
from capo_ray.engines.causal_model import shape_of
from capo_ray.learn.loss import Objective
from capo_ray.learn.surrogate import Clip


def learning_rate(trainer: Trainer, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0): linear warm-up that ends at the full rate, then cosine or constant."""
    if step < trainer.warmup_steps:
        return trainer.learning_rate * (step + 1) / (trainer.warmup_steps + 1)
    if trainer.schedule == "constant":
        return trainer.learning_rate
    progress = min(1.0, (step - trainer.warmup_steps) / max(1, total_steps - trainer.warmup_steps))
    share = trainer.final_lr_share + (1 - trainer.final_lr_share) * (1 + math.cos(math.pi * progress)) / 2
    return trainer.learning_rate * share


def zero_options(trainer: Trainer) -> dict[str, Any]:
    """DeepSpeed's block `zero_optimization`, as far as it does not depend on the model."""
    on_host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    off = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
    own = {"stage": trainer.zero_stage, "overlap_comm": False, **dict.fromkeys(off[trainer.offload], on_host)}
    return merged(own, trainer.deepspeed.get("zero_optimization", {}))


def deepspeed_config(trainer: Trainer, model: Any, world_size: int) -> dict[str, Any]:
    own: dict[str, Any] = {
        "train_batch_size": world_size,  # not used: boundaries are set by hand, see train_deepspeed
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": trainer.max_grad_norm,
        "bf16": {"enabled": model.dtype == torch.bfloat16},
        # Sums in bfloat16 lose small micro-batches beside large ones; without ZeRO DeepSpeed has no others.
        "data_types": {"grad_accum_dtype": "fp32" if trainer.zero_stage else None},
        "zero_optimization": {
            "stage3_param_persistence_threshold": 10 * model.config.hidden_size,  # norms and biases stay whole
            **zero_options(trainer),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps on the host too, and needs no compiler there
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return merged(own, trainer.deepspeed)


def objective_of(algorithm: Algorithm) -> Objective:
    bounds = Clip(low=algorithm.clip_low, high=algorithm.clip_high, dual=algorithm.clip_dual)
    return filled(Objective, algorithm, bounds=bounds)


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weight_decay:
        return [{"params": parameters, "weight_decay": 0.0}]
    return [
        {"params": [p for p in parameters if len(shape_of(p)) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
