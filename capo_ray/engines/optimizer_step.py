"""One step of DeepSpeed's optimizer, or none: a gradient that is not finite moves nothing on any rank.

With ZeRO or in bfloat16 DeepSpeed itself leaves such a step out, before it clips; in float32 without ZeRO it looks at
nothing, and so it is looked at here. Leaves out where the gradient comes from and what becomes of a run in which this
happens (train_deepspeed, records.watch).
"""

from __future__ import annotations

import math
from typing import Any

import torch


def move(engine: Any, model: Any, *, looks: bool) -> float:
    """Clip the gradient that all ranks have together and step, or throw it away: weights, moments and counts stay as
    they are then, to the last bit. Returns its norm before clipping, infinity where nothing moved.

    `looks`: whether DeepSpeed looks for itself. Raises FloatingPointError where it should have and did not.
    """
    if not looks:
        norm = _grad_norm(model)  # of the mean over ranks, so they agree
        if not math.isfinite(norm):
            engine.zero_grad()
            return math.inf
        engine.step()
        return norm
    engine.step()
    if not engine.was_step_applied():
        _forget_sums(engine)
        return math.inf
    norm = float(engine.get_global_grad_norm())
    if math.isfinite(norm) and norm >= 0:  # DeepSpeed says -1 of a norm that is not finite
        return norm
    raise FloatingPointError(
        "DeepSpeed has taken an optimizer step with a gradient that is not finite, and the policy is lost: go on from "
        "the last checkpoint, without the options of trainer.deepspeed"
    )


def _forget_sums(engine: Any) -> None:
    """Of ZeRO 1 and 2: with the optimizer's state on the CPU, DeepSpeed 0.19 adds the next step to the one it skipped.
    What it takes in bfloat16 without that has no such sums."""
    if engine.zero_optimization_stage() in (1, 2) and hasattr(engine.optimizer, "averaged_gradients"):
        sums = engine.optimizer.averaged_gradients
        sums.update(dict.fromkeys(sums))


def _grad_norm(model: Any) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
