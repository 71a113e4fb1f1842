"""From hidden states to the log-probabilities of tokens, without the logits of all of them at once.

Logits [N, V] are the largest tensors of an update: 16k tokens over 152k entries are 10 GB in float32, and their
gradient as much again. Here they are made in pieces, forward and backward: the forward pass keeps one number for each
token, the backward pass makes each piece again. Where one piece holds all tokens, nothing is made twice.
Leaves out: who has the head's weights (see `engines.causal_model`) and what becomes of the log-probabilities
(see `learn.loss`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIECE_ELEMENTS = 2**26
"""Logits held at a time: a quarter of a GiB in float32."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    entropy_gradient: bool = False,
    float32: bool = False,
    piece: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target [N] and entropy of its distribution [N], in float32 or what is wider.

    The logits are `hidden` [N, H] times `weight` [V, H], plus `bias` [V], divided by `temperature`. They are a product
    in the type of the model, of which all that follows is taken in float32; with `float32` the product is too.
    `piece`: tokens whose logits are held at a time; null: as many as PIECE_ELEMENTS allows. The entropy carries a
    gradient only if it is asked for. The method of chunks is Liger's, arXiv 2410.10989, with the loss left outside.
    """
    rows = piece or max(1, PIECE_ELEMENTS // len(weight))
    if len(hidden) <= rows:
        logits = _logits(hidden, *_in_type(weight, bias, float32))
        logprobs, entropy = _Scores.apply(logits, targets, temperature, entropy_gradient)
        return logprobs, entropy
    logprobs, entropy = _Pieces.apply(hidden, weight, bias, targets, temperature, entropy_gradient, float32, rows)
    return logprobs, entropy if entropy_gradient else entropy.detach()


def _in_type(weight: Tensor, bias: Tensor | None, float32: bool) -> tuple[Tensor, Tensor | None]:
    """The head's own in which the product is taken."""
    if not float32:
        return weight, bias
    return weight.to(_wide(weight)), None if bias is None else bias.to(_wide(bias))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)


def _log_shares(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(_wide(logits))
    if temperature != 1:
        wide = wide / temperature
    return wide.log_softmax(-1)


class _Scores(torch.autograd.Function):
    """Log-probability of each target and entropy, of logits [N, V]. Its gradient is known in one line (see `_slopes`);
    autograd would go over all logits once for each operation of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        log_shares = _log_shares(logits, temperature)
        shares = log_shares.exp()
        chosen = log_shares.gather(-1, targets[:, None])[:, 0]
        ctx.save_for_backward(shares, log_shares if entropy_gradient else None, targets)
        ctx.settings = (temperature, logits.dtype)
        entropy = -(shares * log_shares if entropy_gradient else log_shares.mul_(shares)).sum(-1)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        shares, log_shares, targets = ctx.saved_tensors
        temperature, dtype = ctx.settings
        return _slopes(shares, log_shares, targets, temperature, *gradients).to(dtype), None, None, None


class _Pieces(torch.autograd.Function):
    """`_Scores` of `_logits`, piece by piece. One function over all pieces, and not a checkpoint for each: the gradient
    of the weights is summed in float32, once, and under ZeRO-3 they are gathered once each way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
        float32: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.settings = (temperature, entropy_gradient, float32, rows)
        weight, bias = _in_type(weight, bias, float32)
        scored = [
            _Scores.apply(_logits(part, weight, bias), target, temperature, False)
            for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat([chosen for chosen, _ in scored]), torch.cat([entropy for _, entropy in scored])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        temperature, entropy_gradient, float32, rows = ctx.settings
        multiplied, added = _in_type(weight, bias, float32)
        of_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad  # beside an adapter a head stays as it is
        of_weight = torch.zeros_like(weight, dtype=_wide(weight)) if learns[1] else None
        of_bias = torch.zeros_like(bias, dtype=_wide(bias)) if bias is not None and learns[2] else None
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            part = hidden[piece].to(multiplied.dtype)
            log_shares = _log_shares(_logits(part, multiplied, added), temperature)
            slopes = _slopes(
                log_shares.exp(),
                log_shares if entropy_gradient else None,
                targets[piece],
                temperature,
                gradients[0][piece],
                gradients[1][piece],
            ).to(multiplied.dtype)
            of_hidden[piece] = slopes @ multiplied
            if of_weight is not None:
                of_weight += slopes.T @ part
            if of_bias is not None:
                of_bias += slopes.sum(0, dtype=of_bias.dtype)
        of_own = [None if of is None else of.to(own.dtype) for of, own in ((of_weight, weight), (of_bias, bias))]
        return of_hidden, *of_own, None, None, None, None, None


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _slopes(
    shares: Tensor,
    log_shares: Tensor | None,
    targets: Tensor,
    temperature: float,
    of_logprobs: Tensor,
    of_entropy: Tensor,
) -> Tensor:
    """The gradient of the logits [n, V]; `log_shares`: None where the entropy has none.

    With p the softmax of logits / temperature and H its entropy: d log p[t] / d logit[v] = ([v = t] - p[v]) /
    temperature, and dH / d logit[v] = -p[v] (log p[v] + H) / temperature.
    """
    slopes = shares * -of_logprobs[:, None]
    slopes.scatter_add_(-1, targets[:, None], of_logprobs[:, None].to(slopes.dtype))
    if log_shares is not None:
        entropy = -(shares * log_shares).sum(-1, keepdim=True)
        slopes -= (log_shares + entropy).mul_(shares).mul_(of_entropy[:, None])
    return slopes if temperature == 1 else slopes.div_(temperature)
