"""The objectives against slow loops in float64, and their gradients against finite differences."""

import math
import random
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import capo_ray.learn.loss as module
from capo_ray.learn.loss import (
    KlEstimator,
    Loss,
    Objective,
    clipped_ratio,
    kl_penalty,
    nll,
    policy_loss,
    token_logprobs,
)

OBJECTIVES = [
    Objective(),
    Objective(clip_low=0.1, clip_high=0.4, kl_weight=0.05, kl_estimator="k2"),
    Objective(kl_weight=0.05, kl_estimator="k3", importance_cap=1.2),
    Objective(kl_weight=0.05, kl_estimator="abs", importance_cap=0.8),
]


def case(seed: int, count: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(count, generator=generator, dtype=torch.float64)

    logprobs = -noise(1.0).abs()
    return {
        "logprobs": logprobs,
        "old": logprobs + noise(0.4),
        "sampler": logprobs + noise(0.4),
        "reference": logprobs + noise(0.4),
        "advantages": noise(1.0),
        "weights": torch.rand(count, generator=generator, dtype=torch.float64),
    }


def run(given: dict[str, Tensor], objective: Objective) -> Loss:
    fields: dict[str, Any] = given | {"reference": given["reference"] if objective.kl_weight else None}
    return policy_loss(**fields, objective=objective, entropy=torch.zeros_like(given["logprobs"]))


def slow(given: dict[str, Tensor], objective: Objective) -> dict[str, float]:
    """The objective of CAPO.md section 7, a token at a time."""
    rows = list(zip(*(given[name].tolist() for name in sorted(given)), strict=True))
    loss = clipped = capped = kl_old = ratios = kl_reference = largest = 0.0
    for advantage, logprob, old, reference, sampler, weight in rows:
        ratio = math.exp(logprob - old)
        held = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
        gain = min(ratio * advantage, held * advantage)
        if objective.importance_cap is not None:
            true = math.exp(old - sampler)
            gain *= min(true, objective.importance_cap)
            capped += true > objective.importance_cap
        r = reference - logprob
        kl = {"k2": r * r / 2, "k3": math.exp(r) - r - 1, "abs": abs(r)}[objective.kl_estimator]
        loss += weight * (-gain + (objective.kl_weight * ratio * kl if objective.kl_weight else 0))
        clipped += (advantage > 0 and ratio > held) or (advantage < 0 and ratio < held)
        ratios, largest = ratios + ratio, max(largest, ratio)
        kl_old += ratio - 1 - math.log(ratio)
        kl_reference += math.exp(r) - r - 1
    return {
        "loss": loss,
        "clip_fraction": clipped,
        "importance_capped": capped,
        "ratio_mean": ratios,
        "ratio_max": largest,
        "kl_old": kl_old,
        "kl_reference": kl_reference,
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(5))
def test_loss_and_metrics_equal_a_loop_over_tokens(objective: Objective, seed: int) -> None:
    given = case(seed)
    made, expected = run(given, objective), slow(given, objective)
    assert made.value.item() == pytest.approx(expected["loss"], rel=1e-12)
    assert made.tokens == 40 and made.totals["loss"].item() == made.value.item()
    for name, value in {**made.sums, **made.maxima}.items():
        if name in expected:
            assert value.item() == pytest.approx(expected[name], rel=1e-9), name
    gap = (given["old"] - given["sampler"]).abs()
    assert made.sums["sampler_gap_mean"].item() == pytest.approx(gap.sum().item())
    assert made.maxima["sampler_gap_max"].item() == pytest.approx(gap.max().item())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_equals_finite_differences(objective: Objective) -> None:
    """The ratio that weights the KL term has no gradient, so the slow loss freezes it at the point."""
    given = case(7)
    logprobs = given["logprobs"].clone().requires_grad_()
    run(given | {"logprobs": logprobs}, objective).value.backward()
    frozen = (given["logprobs"] - given["old"]).exp()
    assert logprobs.grad is not None

    def value(at: Tensor) -> float:
        policy = run(given | {"logprobs": at}, Objective(**{**settings(objective), "kl_weight": 0.0})).value
        kl = kl_penalty(at, given["reference"], objective.kl_estimator)
        return float(policy + objective.kl_weight * (given["weights"] * frozen * kl).sum())

    for index in range(40):
        step = torch.zeros(40, dtype=torch.float64)
        step[index] = 1e-6
        slope = (value(given["logprobs"] + step) - value(given["logprobs"] - step)) / 2e-6
        assert logprobs.grad[index].item() == pytest.approx(slope, abs=1e-7)


def settings(objective: Objective) -> dict[str, Any]:
    return {name: getattr(objective, name) for name in Objective.__dataclass_fields__}


def test_on_policy_the_gradient_is_reinforce() -> None:
    given = case(3)
    logprobs = given["logprobs"].clone().requires_grad_()
    made = run(given | {"logprobs": logprobs, "old": logprobs.detach()}, Objective())
    made.value.backward()
    assert torch.equal(logprobs.grad, -given["weights"] * given["advantages"])
    assert made.sums["clip_fraction"] == 0 and made.maxima["ratio_max"] == 1 and made.sums["kl_old"] == 0


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "moves"), [(1, 0.5, False), (1, -0.5, True), (-1, 0.5, True), (-1, -0.5, False)]
)
def test_clipped_tokens_have_no_gradient(advantage: float, log_ratio: float, moves: bool) -> None:
    at = torch.tensor([log_ratio], requires_grad=True)
    made = clipped_ratio(at, torch.tensor([float(advantage)]), Objective())
    made.losses.sum().backward()
    assert bool(at.grad) is moves and bool(made.clipped) is not moves


def test_the_samplers_own_logprobs_need_no_importance_weight() -> None:
    given = case(4)
    sampler = given["sampler"]
    fields: dict[str, Any] = given | {"old": sampler, "reference": None, "entropy": sampler}
    made = policy_loss(**fields, objective=Objective(importance_cap=2.0))
    assert made.value == policy_loss(**fields, objective=Objective()).value
    assert made.sums["importance_capped"] == 0
    assert made.sums["sampler_gap_mean"].item() == pytest.approx((given["logprobs"] - sampler).abs().sum().item())


def test_a_token_that_was_ruled_out_poisons_nothing() -> None:
    extreme = torch.tensor([-1e4, -1.0, -2.0], requires_grad=True)
    other = torch.tensor([-1.0, -1e4, -2.0])
    made = policy_loss(
        extreme,
        old=other,
        sampler=other.flip(0),
        reference=other,
        advantages=torch.tensor([0.0, 0.0, 1.0]),
        weights=torch.ones(3),
        objective=Objective(kl_weight=0.1, importance_cap=2.0),
        entropy=torch.zeros(3),
    )
    made.value.backward()
    assert made.value.isfinite() and extreme.grad is not None and extreme.grad.isfinite().all()


@pytest.mark.parametrize("estimator", get_args(KlEstimator))
def test_kl_is_zero_at_the_reference_and_positive_elsewhere(estimator: KlEstimator) -> None:
    logprobs = torch.linspace(-5, -0.1, 20, dtype=torch.float64)
    assert (kl_penalty(logprobs, logprobs, estimator) == 0).all()
    assert (kl_penalty(logprobs, logprobs + 0.3, estimator) > 0).all()
    assert (kl_penalty(logprobs, logprobs - 0.3, estimator) > 0).all()


def test_k3_expects_the_true_kl() -> None:
    """Summed over the whole vocabulary under the policy, k3 is the KL divergence itself."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 30, generator=generator, dtype=torch.float64).log_softmax(-1)
    true = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * kl_penalty(policy, reference, "k3")).sum().item() == pytest.approx(true.item())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logprobs_equal_a_loop(temperature: float) -> None:
    rng = random.Random(0)
    logits = [[rng.gauss(0, 3) for _ in range(11)] for _ in range(6)]
    targets = [rng.randrange(11) for _ in range(6)]
    made, entropy = token_logprobs(torch.tensor(logits, dtype=torch.float64), torch.tensor(targets), temperature)
    for row, target, logprob, spread in zip(logits, targets, made.tolist(), entropy.tolist(), strict=True):
        odds = [math.exp(logit / temperature) for logit in row]
        shares = [odd / sum(odds) for odd in odds]
        assert logprob == pytest.approx(math.log(shares[target]), rel=1e-12)
        assert spread == pytest.approx(-sum(share * math.log(share) for share in shares), rel=1e-12)


def test_chunks_change_neither_logprobs_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(10, 7, dtype=torch.float64)
    targets = torch.randint(0, 7, (10,))
    results = []
    for elements in (2**27, 21):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
        leaf = logits.clone().requires_grad_()
        made, entropy = token_logprobs(leaf, targets, 0.7)
        (made * torch.arange(10)).sum().backward()
        results.append((made, entropy, leaf.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_bfloat16_logits_are_scored_in_float32() -> None:
    logits = torch.randn(4, 7).bfloat16()
    made, _ = token_logprobs(logits, torch.zeros(4, dtype=torch.long))
    assert made.dtype == torch.float32
    assert torch.allclose(made, logits.float().log_softmax(-1)[:, 0], atol=1e-6)


def test_nll_is_the_weighted_sum() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    made = nll(logprobs, weights=torch.tensor([0.5, 0.25, 0.25]), entropy=torch.ones(3))
    assert made.value == 2.0 and made.sums["nll"] == 7.0 and made.tokens == 3
