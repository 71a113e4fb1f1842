"""Log-probabilities from hidden states: a loop's, however many pieces they are made in, and so is their gradient."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from capo_ray.learn.head import PIECE_ELEMENTS, token_logprobs

N, H, V = 10, 5, 7


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias and targets."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return numbers(N, H), numbers(V, H), numbers(V), torch.randint(0, V, (N,), generator=generator)


@pytest.mark.parametrize("piece", [None, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_they_equal_a_loop(temperature: float, piece: int | None) -> None:
    hidden, weight, bias, targets = given()
    made, entropy = token_logprobs(hidden, weight, bias, targets, temperature, piece=piece)
    logits = (hidden @ weight.T + bias).tolist()
    for row, target, logprob, spread in zip(logits, targets.tolist(), made.tolist(), entropy.tolist(), strict=True):
        odds = [math.exp(logit / temperature) for logit in row]
        shares = [odd / sum(odds) for odd in odds]
        assert logprob == pytest.approx(math.log(shares[target]), rel=1e-12)
        assert spread == pytest.approx(-sum(share * math.log(share) for share in shares), rel=1e-12)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.parametrize("piece", [1, 3, 5, 9, N])
def test_pieces_change_neither_values_nor_gradients(piece: int, entropy_gradient: bool, biased: bool) -> None:
    results = []
    for held in (None, piece):
        hidden, weight, bias, targets = given()
        made, entropy = token_logprobs(
            hidden, weight, bias if biased else None, targets, 0.7, entropy_gradient=entropy_gradient, piece=held
        )
        assert entropy.requires_grad == entropy_gradient
        loss = (made * torch.arange(N)).sum()
        (loss + (entropy * torch.arange(N, 0, -1)).sum() if entropy_gradient else loss).backward()
        results.append((made, entropy, hidden.grad, weight.grad, *([bias.grad] if biased else [])))
    for one, other in zip(*results, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("piece", [None, 3])
@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_the_gradient_is_the_slope(temperature: float, entropy_gradient: bool, piece: int | None) -> None:
    """By finite differences, in hidden states, weight and bias."""
    hidden, weight, bias, targets = given()

    def made(*inputs: Tensor) -> Any:
        both = token_logprobs(*inputs, targets, temperature, entropy_gradient=entropy_gradient, piece=piece)
        return both if entropy_gradient else both[0]

    assert torch.autograd.gradcheck(made, (hidden, weight, bias))


def test_bfloat16_is_scored_in_float32_and_multiplied_so_if_asked() -> None:
    hidden, weight, _, targets = given(torch.bfloat16)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(N), targets]
    gaps = {}
    for float32 in (False, True):
        for piece in (None, 3):
            made, _ = token_logprobs(hidden, weight, None, targets, float32=float32, piece=piece)
            assert made.dtype == torch.float32
            gaps[float32, piece] = (made - exact).abs().max().item()
            (gradient,) = torch.autograd.grad(made.sum(), weight)
            assert gradient.dtype == torch.bfloat16
    assert gaps[True, None] < 1e-6 and gaps[True, 3] < 1e-6 < gaps[False, None]
    assert gaps[False, 3] == gaps[False, None]


def test_a_gradient_is_summed_in_float32_over_pieces() -> None:
    """A thousand equal terms: in bfloat16 the sum would stop growing at 256 of them."""
    rng = random.Random(0)
    hidden = torch.ones(2000, 2, dtype=torch.bfloat16)
    weight = torch.tensor([[rng.gauss(0, 1)] * 2 for _ in range(4)], dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.long)
    whole, pieces = (
        torch.autograd.grad(token_logprobs(hidden, weight, None, targets, piece=piece)[0].sum(), weight)[0]
        for piece in (None, 2)
    )
    torch.testing.assert_close(whole, pieces, rtol=0.01, atol=0)


def test_as_many_logits_are_held_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import capo_ray.learn.head as module

    held = []
    linear = torch.nn.functional.linear

    def counted(*inputs: Any) -> Tensor:
        held.append(linear(*inputs).numel())
        return linear(*inputs)

    monkeypatch.setattr(module.torch.nn.functional, "linear", counted)
    monkeypatch.setattr(module, "PIECE_ELEMENTS", 3 * V)
    hidden, weight, bias, targets = given()
    token_logprobs(hidden, weight, bias, targets)[0].sum().backward()
    assert held == [3 * V, 3 * V, 3 * V, V] * 2
    assert PIECE_ELEMENTS > 3 * V


@pytest.mark.parametrize("piece", [None, 3])
def test_a_head_that_stays_has_no_gradient_and_what_is_below_it_has_the_same(piece: int | None) -> None:
    hidden, weight, bias, targets = given()
    found = []
    for learns in (True, False):
        weight.requires_grad_(learns), bias.requires_grad_(learns)
        logprobs, _ = token_logprobs(hidden, weight, bias, targets, piece=piece)
        asked = (hidden, weight, bias) if learns else (hidden,)
        found.append(torch.autograd.grad(logprobs.sum(), asked)[0])
    assert torch.equal(*found)
