"""Models as the trainer's passes go over them: the policy's scorer, and the reference, which never learns.

Sequences that stand in one row must not know of each other. Most models of transformers keep to that when they are
asked to; one that does not would train on nonsense without a sign, so each is tried before it is used. Leaves out how a
model is made (`causal_model`) and what becomes of its log-probabilities (`train_deepspeed`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from capo_ray.config.blocks import Trainer
from capo_ray.engines import attention
from capo_ray.engines.causal_model import Scorer
from capo_ray.engines.trainer_settings import deepspeed_config
from capo_ray.learn.batch import collate
from capo_ray.learn.packing import Packing
from capo_ray.types import TrainSequence

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Between log-probabilities of a sequence alone and in company: sums are taken in another order."""


def scorer_of(model: Any, trainer: Trainer, *, entropy_gradient: bool = False) -> Scorer:
    """Raises ValueError where the model's layers attend in a way that `trainer.packing` does not allow for."""
    if trainer.packing != "padded":
        _attend_by_segments(model)
    return Scorer(
        model, entropy_gradient=entropy_gradient, float32=trainer.head_float32, head_tokens=trainer.head_tokens
    )


def _attend_by_segments(model: Any) -> None:
    attention.register()
    model.set_attn_implementation(attention.NAME)
    if model.config.get_text_config()._attn_implementation != attention.NAME:
        raise ValueError(
            f"{type(model).__name__} has attention of its own kind: set packing=padded (trainer.packing of a run)"
        )


def check_company(scorer: Any, packing: Packing, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError where what stands beside a sequence in its row changes its log-probabilities. Collective under
    ZeRO-3; `vocabulary`: entries of it."""
    if packing == "padded":
        return

    def score(*sequences: TrainSequence) -> Tensor:
        batch = collate(sequences, "token_mean", 1.0, packing=packing, device=device)
        with torch.no_grad():
            return scorer(batch, 1.0)[0].cpu()

    first, moved, second, third = (_made_up(number, vocabulary) for number in range(4))
    together = score(first, second, third)
    alone = torch.cat([score(one) for one in (first, second, third)])
    others = score(moved, second, third)[len(first.token_ids) :]
    if not torch.equal(together[len(first.token_ids) :], others):
        why = "a sequence knows of the one before it in its row"
    elif (gap := float((together - alone).abs().max())) > TOLERANCE[dtype]:
        why = f"log-probabilities of a sequence in company and alone differ by {gap:.2g}"
    else:
        return
    raise ValueError(
        f"this model cannot be trained with packing={packing} (trainer.packing of a run), since {why}: set it to padded"
    )


def _made_up(number: int, vocabulary: int) -> TrainSequence:
    """The first three have one prompt."""
    tokens = tuple((7 * number + 3 * place + place * place) % vocabulary for place in range(11))
    prompt = tuple((5 * place + number // 3) % vocabulary for place in range(6))
    zeros = (0.0,) * len(tokens)
    return TrainSequence(prompt_ids=prompt, token_ids=tokens, advantages=zeros, logprobs=zeros)


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
