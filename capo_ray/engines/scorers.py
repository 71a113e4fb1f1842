"""Models as the trainer's passes go over them: the policy's scorer, and the reference, which never learns.

Leaves out how a model is made (`causal_model`) and what becomes of its log-probabilities (`train_deepspeed`).
"""

from __future__ import annotations

from typing import Any

import torch

from capo_ray.config.blocks import Trainer
from capo_ray.engines.causal_model import Scorer
from capo_ray.engines.trainer_settings import deepspeed_config


def scorer_of(model: Any, trainer: Trainer, *, entropy_gradient: bool = False) -> Scorer:
    return Scorer(
        model, entropy_gradient=entropy_gradient, float32=trainer.head_float32, head_tokens=trainer.head_tokens
    )


def reference_of(model: Any, trainer: Trainer, device: torch.device, world_size: int) -> Any:
    """A scorer whose weights stay. Under ZeRO-3 it is collective, and the model's weights stay in shares."""
    scorer = scorer_of(model.requires_grad_(False), trainer).eval()
    if trainer.zero_stage < 3:
        return scorer.to(device)
    import deepspeed

    config = deepspeed_config(trainer, model, world_size)
    engine, *_ = deepspeed.initialize(model=scorer, config=config, dist_init_required=False)
    engine.eval()
    return engine
