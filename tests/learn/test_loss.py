"""The objectives against slow loops in float64, and their gradients against finite differences."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from capo_ray.learn.head import token_logprobs
from capo_ray.learn.loss import (
    NLL_METRICS,
    KlEstimator,
    Loss,
    MetricNames,
    Objective,
    kl_penalty,
    nll,
    policy_loss,
    policy_metrics,
)
from capo_ray.learn.surrogate import SURROGATES, Clip, SurrogateName, Tokens, clip

SURROGATE_NAMES: list[SurrogateName] = list(SURROGATES)
OBJECTIVES = [
    *(Objective(surrogate=name) for name in SURROGATE_NAMES),
    *(Objective(surrogate=name, bounds=Clip(low=0.1, high=0.28), importance_cap=1.2) for name in SURROGATE_NAMES),
    Objective(bounds=Clip(dual=1.5)),
    Objective(surrogate="gspo_token", bounds=Clip(low=0.05, high=0.05, dual=1.2)),
    Objective(bounds=Clip(low=0.1, high=0.4), kl_weight=0.05, kl_estimator="k2"),
    Objective(kl_weight=0.05, kl_estimator="k3", importance_cap=1.2),
    Objective(kl_weight=0.05, kl_estimator="abs", importance_cap=0.8),
    Objective(kl_weight=0.05, kl_estimator="k1", kl_place="reward"),
    Objective(surrogate="cispo", kl_weight=0.05, kl_estimator="k3", kl_place="reward"),
    Objective(kl_weight=0.05, kl_estimator="k3", kl_gradient=True),
    Objective(kl_weight=0.05, kl_estimator="k1", kl_gradient=True, kl_cap=0.3),
    Objective(kl_weight=0.05, kl_estimator="k2", kl_cap=0.05),
    Objective(kl_weight=0.05, kl_estimator="k3", kl_cap=None),
    Objective(kl_weight=0.05, kl_estimator="k1", kl_place="reward", kl_cap=0.2),
]
LENGTHS = [1, 7, 12, 1, 19]
"""Ragged, with responses of one token."""


def scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy of logits, as those of a head that changes nothing."""
    unchanged = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return token_logprobs(logits, unchanged, None, targets, entropy_gradient=True)


def case(seed: int) -> dict[str, Tensor]:
    count = sum(LENGTHS)
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
        "rows": torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)),
    }


def run(given: dict[str, Tensor], objective: Objective) -> Loss:
    fields: dict[str, Any] = given | {"reference": given["reference"] if objective.kl_weight else None}
    return policy_loss(**fields, objective=objective, entropy=torch.zeros_like(given["logprobs"]))


def slow(given: dict[str, Tensor], objective: Objective, frozen: dict[str, Tensor] | None = None) -> dict[str, float]:
    """The objective of docs/algorithm.md section 7 and of the papers that `learn.surrogate` names, a token at a time.

    `frozen` is the point at which factors without gradient are held; it is the same point unless the gradient is taken.
    """
    at = frozen or given
    bounds, name = objective.bounds, objective.surrogate
    tokens = [{field: given[field][t].item() for field in given} for t in range(sum(LENGTHS))]
    held_at = [at["logprobs"][t].item() for t in range(sum(LENGTHS))]
    sequences = [[t for t in range(sum(LENGTHS)) if tokens[t]["rows"] == row] for row in range(len(LENGTHS))]

    def hold(ratio: float) -> float:
        return min(max(ratio, 1 - bounds.low), 1 + bounds.high)

    def kl(r: float) -> float:
        return {"k1": -r, "k2": r * r / 2, "k3": math.exp(r) - r - 1, "abs": abs(r)}[objective.kl_estimator]

    def held(r: float) -> float:
        cap = math.inf if objective.kl_cap is None else objective.kl_cap
        return min(max(kl(r), -cap), cap)

    loss = kl_capped = clipped = capped = kl_old = ratios = kl_reference = largest = 0.0
    for members in sequences:
        advantages = [
            tokens[t]["advantages"]
            - (
                objective.kl_weight * held(tokens[t]["reference"] - tokens[t]["old"])
                if objective.kl_place == "reward"
                else 0.0
            )
            for t in members
        ]
        mean_now = sum(tokens[t]["logprobs"] - tokens[t]["old"] for t in members) / len(members)
        mean_held = sum(held_at[t] - tokens[t]["old"] for t in members) / len(members)
        for t, own in zip(members, advantages, strict=True):
            token = tokens[t]
            advantage = sum(advantages) / len(members) if name == "gspo" else own
            ratio = math.exp(token["logprobs"] - token["old"])
            used = {
                "clip": ratio,
                "gspo": math.exp(mean_now),
                "gspo_token": math.exp(mean_held + token["logprobs"] - held_at[t]),
                "cispo": math.exp(held_at[t] - token["old"]),
            }[name]
            if name == "cispo":
                gain = hold(used) * advantage * token["logprobs"]
                clipped += hold(used) != used
            else:
                gain = min(used * advantage, hold(used) * advantage)
                if bounds.dual is not None and advantage < 0:
                    gain = max(gain, bounds.dual * advantage)
                clipped += gain != used * advantage
            if objective.importance_cap is not None:
                true = math.exp(token["old"] - token["sampler"])
                gain *= min(true, objective.importance_cap)
                capped += true > objective.importance_cap
            loss -= token["weights"] * gain
            r = token["reference"] - token["logprobs"]
            if objective.kl_weight and objective.kl_place == "loss":
                weighed = token["logprobs"] if objective.kl_gradient else held_at[t]
                loss += token["weights"] * objective.kl_weight * math.exp(weighed - token["old"]) * held(r)
            at_old = token["reference"] - token["old"]
            place = r if objective.kl_place == "loss" else at_old
            kl_capped += kl(place) != held(place)
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
        "kl_capped": kl_capped,
    }


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_loss_and_metrics_equal_a_loop_over_tokens(objective: Objective, seed: int) -> None:
    given = case(seed)
    made, expected = run(given, objective), slow(given, objective)
    assert made.value.item() == pytest.approx(expected["loss"], rel=1e-12)
    assert made.tokens == sum(LENGTHS) and made.totals["loss"].item() == made.value.item()
    for name, value in {**made.sums, **made.maxima}.items():
        if name in expected:
            assert value.item() == pytest.approx(expected[name], rel=1e-9), name
    gap = (given["old"] - given["sampler"]).abs()
    assert made.sums["sampler_gap_mean"].item() == pytest.approx(gap.sum().item())
    assert made.maxima["sampler_gap_max"].item() == pytest.approx(gap.max().item())


def names_of(loss: Loss) -> MetricNames:
    return MetricNames(sums=tuple(loss.sums), totals=tuple(loss.totals), maxima=tuple(loss.maxima))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_metrics_are_called_what_they_are_said_to_be(objective: Objective) -> None:
    """In this order too: a rank that has no token adds up by it."""
    assert names_of(run(case(0), objective)) == policy_metrics(objective, reference=objective.kl_weight > 0)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_gradient_equals_finite_differences(objective: Objective) -> None:
    """Of the slow loss, whose factors without gradient are frozen at the point."""
    given = case(7)
    logprobs = given["logprobs"].clone().requires_grad_()
    run(given | {"logprobs": logprobs}, objective).value.backward()
    assert logprobs.grad is not None
    for index in range(sum(LENGTHS)):
        step = torch.zeros(sum(LENGTHS), dtype=torch.float64)
        step[index] = 1e-6
        ahead, behind = (
            slow(given | {"logprobs": given["logprobs"] + side * step}, objective, frozen=given)["loss"]
            for side in (1, -1)
        )
        assert logprobs.grad[index].item() == pytest.approx((ahead - behind) / 2e-6, abs=1e-7)


def test_gspo_and_gspo_token_agree_where_a_response_has_one_advantage() -> None:
    """GSPO's paper, section 4.3: value and gradient, response by response."""
    given = case(11)
    given["advantages"] = given["advantages"][given["rows"]]
    given["weights"] = given["weights"][given["rows"]]  # of a response's first tokens, equal within it
    grads = []
    for name in ("gspo", "gspo_token"):
        leaf = given["logprobs"].clone().requires_grad_()
        made = run(given | {"logprobs": leaf}, Objective(surrogate=name)).value
        made.backward()
        grads.append((made.item(), leaf.grad))
    (one, gradient), (other, same) = grads
    assert one == pytest.approx(other) and torch.allclose(gradient, same)


def test_cispo_teaches_tokens_that_the_clip_silences() -> None:
    given = case(5)
    for name, silent in (("clip", True), ("cispo", False)):
        leaf = given["logprobs"].clone().requires_grad_()
        run(given | {"logprobs": leaf}, Objective(surrogate=name)).value.backward()
        assert bool((leaf.grad == 0).any()) is silent


def test_the_entropy_bonus_is_the_entropy_of_the_formula() -> None:
    """Value by a loop over the vocabulary, gradient by finite differences over logits, beside the clip's."""
    given = case(9)
    count, weight = sum(LENGTHS), 0.3
    logits = torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    targets = torch.arange(count) % 5

    def probabilities(row: list[float]) -> list[float]:
        whole = sum(map(math.exp, row))
        return [math.exp(value) / whole for value in row]

    def slow_loss(at: Tensor) -> float:
        rows = [probabilities(row) for row in at.tolist()]
        chosen = [math.log(row[t]) for row, t in zip(rows, targets.tolist(), strict=True)]
        loss = slow(given | {"logprobs": torch.tensor(chosen, dtype=torch.float64)}, Objective())["loss"]
        for token_weight, row in zip(given["weights"].tolist(), rows, strict=True):
            loss -= token_weight * weight * -sum(p * math.log(p) for p in row)
        return loss

    leaf = logits.clone().requires_grad_()
    logprobs, entropy = scored(leaf, targets)
    fields: dict[str, Any] = given | {"logprobs": logprobs, "entropy": entropy, "reference": None}
    made = policy_loss(**fields, objective=Objective(entropy_weight=weight)).value
    made.backward()
    assert leaf.grad is not None
    assert made.item() == pytest.approx(slow_loss(logits), rel=1e-6)
    for row, column in ((0, 0), (3, 1), (8, 4), (20, 2), (39, 3)):
        step = torch.zeros_like(logits)
        step[row, column] = 1e-6
        difference = (slow_loss(logits + step) - slow_loss(logits - step)) / 2e-6
        assert leaf.grad[row, column].item() == pytest.approx(difference, abs=1e-6)


def test_an_entropy_bonus_raises_the_entropy() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    logprobs, entropy = scored(logits, torch.zeros(6, dtype=torch.long))
    zeros = torch.zeros(6, dtype=torch.float64)
    policy_loss(
        logprobs,
        old=logprobs.detach(),
        sampler=zeros,
        reference=None,
        advantages=zeros,
        weights=torch.ones(6, dtype=torch.float64),
        rows=torch.zeros(6, dtype=torch.long),
        objective=Objective(entropy_weight=0.5),
        entropy=entropy,
    ).value.backward()
    moved = scored(logits - 0.1 * logits.grad, torch.zeros(6, dtype=torch.long))[1]
    assert (moved > entropy).all()


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
    rows = torch.zeros(1, dtype=torch.long)
    tokens = Tokens(logprobs=at, log_ratio=at, advantages=torch.tensor([float(advantage)]), rows=rows)
    made = clip(tokens, Clip())
    made.losses.sum().backward()
    assert bool(at.grad) is moves and bool(made.held) is not moves


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
        rows=torch.zeros(3, dtype=torch.long),
        objective=Objective(kl_weight=0.1, importance_cap=2.0),
        entropy=torch.zeros(3),
    )
    made.value.backward()
    assert made.value.isfinite() and extreme.grad is not None and extreme.grad.isfinite().all()


def test_no_token_has_more_kl_than_the_cap() -> None:
    """A token that the policy has all but ruled out and the reference has not; its neighbours are what they were."""
    logprobs = torch.tensor([-30.0, -1.0, -1.0], requires_grad=True)
    fields: dict[str, Any] = {
        "old": logprobs.detach(), "sampler": logprobs.detach(), "reference": torch.tensor([-1.0, -1.3, -1.0]),
        "advantages": torch.zeros(3), "weights": torch.ones(3), "rows": torch.zeros(3, dtype=torch.long),
        "entropy": torch.zeros(3),
    }  # fmt: skip

    def made(**given: Any) -> Loss:
        return policy_loss(logprobs, **fields, objective=Objective(kl_weight=1.0, **given))

    default, free = made(), made(kl_cap=None)
    small = kl_penalty(torch.tensor(-1.0), torch.tensor(-1.3), "k3").item()
    assert default.value.item() == pytest.approx(10 + small)
    assert free.value.item() == pytest.approx(math.exp(20), rel=1e-6)  # of the clamped log ratio
    assert (default.sums["kl_capped"], free.sums["kl_capped"]) == (1, 0)
    default.value.backward()
    assert logprobs.grad is not None and logprobs.grad[0] == 0 and logprobs.grad[1] != 0
    logprobs.grad = None
    made(kl_gradient=True).value.backward()
    assert logprobs.grad.tolist()[0] == pytest.approx(10)  # type: ignore[attr-defined]  # of the ratio alone


@pytest.mark.parametrize("off_policy", [0.0, 0.7])
@pytest.mark.parametrize(("through", "pulls"), [(False, "forward"), (True, "reverse")])
def test_whose_gradient_k3_has(through: bool, pulls: str, off_policy: float) -> None:
    """Summed over a vocabulary as the old policy samples it: with the gradient through the ratio that of
    KL(policy || reference), without it that of KL(reference || policy)."""
    generator = torch.Generator().manual_seed(0)
    logits, ahead, other = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    policy, reference = logits.log_softmax(-1), other.log_softmax(-1)
    old = (logits.detach() + off_policy * ahead).log_softmax(-1)
    loss = policy_loss(
        policy, old=old, sampler=old, reference=reference, advantages=torch.zeros(9), weights=old.exp(),
        rows=torch.zeros(9, dtype=torch.long), entropy=torch.zeros(9),
        objective=Objective(kl_weight=1.0, kl_gradient=through, kl_cap=None),
    )  # fmt: skip
    (got,) = torch.autograd.grad(loss.value, logits, retain_graph=True)
    reverse = (policy.exp() * (policy - reference)).sum()
    forward = (reference.exp() * (reference - policy)).sum()
    (wanted,) = torch.autograd.grad(reverse if pulls == "reverse" else forward, logits)
    assert torch.allclose(got, wanted, atol=1e-12)


def test_ratios_are_shown_as_they_are() -> None:
    fields: dict[str, Any] = {
        "sampler": torch.zeros(2), "reference": None, "advantages": torch.zeros(2), "weights": torch.ones(2),
        "rows": torch.zeros(2, dtype=torch.long), "entropy": torch.zeros(2), "objective": Objective(),
    }  # fmt: skip
    made = policy_loss(torch.tensor([-1.0, -1.0]), old=torch.tensor([-1.0, -51.0]), **fields)
    assert made.maxima["ratio_max"].item() == pytest.approx(math.exp(50), rel=1e-5)
    assert made.sums["kl_old"].item() == pytest.approx(math.exp(50) - 51, rel=1e-5)
    far = policy_loss(torch.tensor([-1.0, -1.0]), old=torch.tensor([-1.0, -1e6]), **fields)
    assert all(value.isfinite() for value in (*far.sums.values(), *far.maxima.values()))


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_a_reference_with_nan_is_an_error(place: Any) -> None:
    given = case(3)
    given["reference"][4] = math.nan
    with pytest.raises(
        FloatingPointError, match=r"^1 of the reference's 40 log-probabilities of a micro-batch are NaN"
    ):
        run(given, Objective(kl_weight=0.05, kl_place=place))


@pytest.mark.parametrize("estimator", [name for name in get_args(KlEstimator) if name != "k1"])
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


def test_nll_is_the_weighted_sum() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    made = nll(logprobs, weights=torch.tensor([0.5, 0.25, 0.25]), entropy=torch.ones(3))
    assert made.value == 2.0 and made.sums["nll"] == 7.0 and made.tokens == 3
    assert names_of(made) == NLL_METRICS
