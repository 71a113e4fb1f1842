"""The objectives over the log-probabilities of tokens (docs/algorithm.md section 7).

Everything is flat: one entry per token that carries loss, [N]. The loss of a micro-batch is the sum of its tokens'
losses times their weights; the weights hold the aggregation (see `learn.batch`). Metrics come beside the loss, as sums
over tokens, so that whoever adds them up over micro-batches and ranks divides once. An objective is a surrogate (see
`learn.surrogate`) and its settings. Leaves out: where log-probabilities come
from (see `learn.head`), the optimizer and how numbers travel between ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from capo_ray.learn.surrogate import Clip, Tokens, surrogate_of

KlEstimator = Literal["k1", "k2", "k3", "abs"]
KlPlace = Literal["loss", "reward"]

MAX_LOG_RATIO = 20.0
"""exp(20) is 5e8: far outside any clip range, but finite in every precision. Without the clamp one token that the
policy has all but ruled out overflows to infinity, and infinity times an advantage of 0 poisons the whole gradient."""

_MOST_LOG_RATIO = 700.0
"""Metrics show ratios as they are, up to what float64 can hold."""


def clamped(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_penalty(logprobs: Tensor, reference: Tensor, estimator: KlEstimator, *, cap: float | None = None) -> Tensor:
    """Estimate of KL(policy || reference) per token, r = log reference - log policy: k1 -r, k2 r^2/2,
    k3 e^r-r-1, abs |r|. The gradient of k1 is 0 on average: by itself it is of use in a reward only.

    No token has more than `cap`, nor less than -`cap`; one that is held there has no gradient.
    """
    r = clamped(reference - logprobs)
    made = {"k1": lambda: -r, "k2": lambda: r * r / 2, "k3": lambda: r.expm1() - r, "abs": r.abs}[estimator]()
    return made if cap is None else made.clamp(-cap, cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the policy objective; see config.Algorithm."""

    surrogate: str = "clip"
    bounds: Clip = field(default_factory=Clip)
    kl_weight: float = 0.0
    kl_estimator: KlEstimator = "k3"
    kl_place: KlPlace = "loss"
    kl_cap: float | None = 10.0
    kl_gradient: bool = False
    entropy_weight: float = 0.0
    importance_cap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A scalar to differentiate, and its metrics without gradient: sums over `tokens`, largest values, and sums that
    are weighted already and need no division."""

    value: Tensor
    tokens: int
    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    totals: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricNames:
    """What a loss's metrics are called, by the way in which they are added up; see Loss."""

    sums: tuple[str, ...]
    totals: tuple[str, ...]
    maxima: tuple[str, ...] = ()


NLL_METRICS = MetricNames(sums=("nll", "entropy"), totals=("loss",))


def policy_metrics(objective: Objective, *, reference: bool) -> MetricNames:
    """Of `policy_loss`, with a reference or without, for those who have no token to compute it of."""
    sums = ["clip_fraction", "sampler_gap_mean", "ratio_mean", "kl_old", "entropy", "advantage_abs"]
    if objective.importance_cap is not None:
        sums += ["importance_mean", "importance_capped"]
    if reference:
        sums += ["kl_reference", "kl_capped"]
    return MetricNames(sums=tuple(sums), totals=("loss", "policy_loss"), maxima=("ratio_max", "sampler_gap_max"))


def _refuse_nan(reference: Tensor | None) -> None:
    """The loss would be NaN, its gradient finite, and the KL gone without a sign."""
    if reference is not None and bool(reference.isnan().any()):
        raise FloatingPointError(
            f"{int(reference.isnan().sum())} of the reference's {len(reference)} log-probabilities of a micro-batch "
            "are NaN: its weights or its number format are broken; look at policy.path, or set algorithm.kl_weight=0"
        )


def _num_capped(kl: Tensor, cap: float | None) -> Tensor:
    return (kl.abs() > (math.inf if cap is None else cap)).float().sum()


def policy_loss(
    logprobs: Tensor,
    *,
    old: Tensor,
    sampler: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    rows: Tensor,
    objective: Objective,
    entropy: Tensor,
) -> Loss:
    """Sum over tokens of weight x (importance x surrogate + kl_weight x KL - entropy_weight x entropy). All [N].

    `old` are the frozen log-probabilities that the ratio is taken against, `sampler` those the tokens were drawn with,
    `rows` the response of each token. With `importance_cap` each token's surrogate counts min(old / sampler, cap): 1
    where old is the sampler's own. The KL term is an expectation under the policy, taken over samples of `old`, so it
    is weighted by the ratio (1 in the first pass), which gets a gradient with `kl_gradient` alone. In the reward it is
    taken at `old` and lowers the token's advantage by kl_weight x KL. Raises FloatingPointError where the reference has
    a NaN.
    """
    _refuse_nan(reference)
    log_ratio = clamped(logprobs - old)
    estimator, cap = objective.kl_estimator, objective.kl_cap
    if reference is not None and objective.kl_place == "reward":
        advantages = advantages - objective.kl_weight * kl_penalty(old, reference, estimator, cap=cap)
    tokens = Tokens(logprobs=logprobs, log_ratio=log_ratio, advantages=advantages, rows=rows)
    made = surrogate_of(objective.surrogate)(tokens, objective.bounds)
    losses = made.losses
    gap = clamped(old - sampler)
    importance = None
    if objective.importance_cap is not None:
        importance = gap.exp().clamp(max=objective.importance_cap)
        losses = losses * importance
    policy = (weights * losses).sum()
    value = policy
    if objective.entropy_weight:
        value = value - objective.entropy_weight * (weights * entropy).sum()
    if reference is not None and objective.kl_place == "loss":
        ratio = (log_ratio if objective.kl_gradient else log_ratio.detach()).exp()
        kl = kl_penalty(logprobs, reference, estimator, cap=cap) * ratio
        value = value + objective.kl_weight * (weights * kl).sum()
    with torch.no_grad():
        true = (logprobs - old).double().clamp(max=_MOST_LOG_RATIO)
        mismatch = ((logprobs if old is sampler else old) - sampler).abs()  # before the policy moves, where known
        sums = {"clip_fraction": made.held.float().sum(), "sampler_gap_mean": mismatch.sum()}
        sums |= {"ratio_mean": true.exp().sum(), "kl_old": (true.expm1() - true).sum()}  # k3 under samples of `old`
        sums |= {"entropy": entropy.detach().sum(), "advantage_abs": advantages.abs().sum()}
        if importance is not None:
            sums["importance_mean"] = importance.sum()
            sums["importance_capped"] = (importance < gap.exp()).float().sum()
        if reference is not None:
            at = logprobs if objective.kl_place == "loss" else old
            sums["kl_reference"] = kl_penalty(logprobs, reference, "k3").sum()
            sums["kl_capped"] = _num_capped(kl_penalty(at, reference, estimator), cap)
        maxima = {"ratio_max": true.max().exp(), "sampler_gap_max": mismatch.max()}
        totals = {"loss": value.detach(), "policy_loss": policy.detach()}
    return Loss(value=value, tokens=len(logprobs), sums=sums, maxima=maxima, totals=totals)


def nll(logprobs: Tensor, *, weights: Tensor, entropy: Tensor) -> Loss:
    """Supervised: the weighted sum of -log-probabilities."""
    value = -(weights * logprobs).sum()
    with torch.no_grad():
        sums = {"nll": -logprobs.sum(), "entropy": entropy.sum()}
        return Loss(value=value, tokens=len(logprobs), sums=sums, totals={"loss": value.detach()})
