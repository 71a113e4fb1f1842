"""Token log-probabilities, and the objectives over them (CAPO.md section 7).

Everything is flat: one entry per token that carries loss, [N]. The loss of a micro-batch is the sum of its tokens'
losses times their weights; the weights hold the aggregation (see `learn.batch`). Metrics come beside the loss, as sums
over tokens, so that whoever adds them up over micro-batches and ranks divides once. An objective is a surrogate
(log-ratio and advantage to a loss per token) and its settings: another one is another function here.
Leaves out: the model, the optimizer and how numbers travel between ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KlEstimator = Literal["k2", "k3", "abs"]

MAX_LOG_RATIO = 20.0
"""exp(20) is 5e8: far outside any clip range, but finite in every precision. Without the clamp one token that the
policy has all but ruled out overflows to infinity, and infinity times an advantage of 0 poisons the whole gradient."""

_CHUNK_ELEMENTS = 2**27
"""Logits scored at a time; float32 copies of all logits at once would be the largest tensor of a run."""


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution [N], of logits [N, V] divided by `temperature`.

    Computed in float32 whatever the logits are. The entropy carries no gradient.
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    if len(logits) <= rows:
        return _score(logits, targets, temperature)
    parts = [
        checkpoint(_score, part, target, temperature, use_reentrant=False)
        for part, target in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _score(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_normaliser = scaled.logsumexp(-1)
    chosen = scaled.gather(-1, targets[:, None])[:, 0] - log_normaliser
    with torch.no_grad():
        entropy = log_normaliser - ((scaled - log_normaliser[:, None]).exp() * scaled).sum(-1)
    return chosen, entropy


def clamped(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_penalty(logprobs: Tensor, reference: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate of KL(policy || reference) per token, r = log reference - log policy: k2 r^2/2, k3 e^r-r-1, abs |r|."""
    r = clamped(reference - logprobs)
    if estimator == "k2":
        return r * r / 2
    if estimator == "k3":
        return r.expm1() - r
    return r.abs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the policy objective; see config.Algorithm."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.0
    kl_estimator: KlEstimator = "k3"
    importance_cap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """What a surrogate makes of the tokens: their losses, and which of them it holds back (a metric)."""

    losses: Tensor  # [N]
    clipped: Tensor  # [N] bool


def clipped_ratio(log_ratio: Tensor, advantages: Tensor, objective: Objective) -> Surrogate:
    """PPO's: -min(ratio A, clip(ratio) A) per token. A token that counts as clipped has no gradient."""
    ratio = log_ratio.exp()
    free = ratio * advantages
    held = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * advantages
    return Surrogate(losses=-torch.minimum(free, held), clipped=held < free)


SurrogateFn = Callable[[Tensor, Tensor, Objective], Surrogate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A scalar to differentiate, and its metrics without gradient: sums over `tokens`, largest values, and sums that
    are weighted already and need no division."""

    value: Tensor
    tokens: int
    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    totals: Mapping[str, Tensor] = field(default_factory=dict)


def policy_loss(
    logprobs: Tensor,
    *,
    old: Tensor,
    sampler: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    objective: Objective,
    entropy: Tensor,
    surrogate: SurrogateFn = clipped_ratio,
) -> Loss:
    """Sum over tokens of weight x (importance x surrogate + kl_weight x KL to the reference). All tensors are [N].

    `old` are the frozen log-probabilities that the ratio is taken against, `sampler` those the tokens were drawn with.
    With `importance_cap` each token's surrogate counts min(old / sampler, cap): 1 where old is the sampler's own. The
    KL term is an expectation under the policy, taken over samples of `old`, so it is weighted by the ratio (1 in the
    first pass), which gets no gradient.
    """
    log_ratio = clamped(logprobs - old)
    made = surrogate(log_ratio, advantages, objective)
    losses = made.losses
    gap = clamped(old - sampler)
    importance = None
    if objective.importance_cap is not None:
        importance = gap.exp().clamp(max=objective.importance_cap)
        losses = losses * importance
    policy = (weights * losses).sum()
    value = policy
    if reference is not None:
        kl = kl_penalty(logprobs, reference, objective.kl_estimator) * log_ratio.detach().exp()
        value = policy + objective.kl_weight * (weights * kl).sum()
    with torch.no_grad():
        ratio = log_ratio.exp()
        mismatch = ((logprobs if old is sampler else old) - sampler).abs()  # before the policy moves, where known
        sums = {
            "clip_fraction": made.clipped.float().sum(),
            "ratio_mean": ratio.sum(),
            "kl_old": (log_ratio.expm1() - log_ratio).sum(),  # k3 under samples of `old`
            "entropy": entropy.sum(),
            "sampler_gap_mean": mismatch.sum(),
            "advantage_abs": advantages.abs().sum(),
        }
        if importance is not None:
            sums["importance_mean"] = importance.sum()
            sums["importance_capped"] = (importance < gap.exp()).float().sum()
        if reference is not None:
            sums["kl_reference"] = kl_penalty(logprobs, reference, "k3").sum()
        maxima = {"ratio_max": ratio.max(), "sampler_gap_max": mismatch.max()}
        totals = {"loss": value.detach(), "policy_loss": policy.detach()}
    return Loss(value=value, tokens=len(logprobs), sums=sums, maxima=maxima, totals=totals)


def nll(logprobs: Tensor, *, weights: Tensor, entropy: Tensor) -> Loss:
    """Supervised: the weighted sum of -log-probabilities."""
    value = -(weights * logprobs).sum()
    with torch.no_grad():
        sums = {"nll": -logprobs.sum(), "entropy": entropy.sum()}
        return Loss(value=value, tokens=len(logprobs), sums=sums, totals={"loss": value.detach()})
