"""Surrogates: what a token loses, given how far its probability has moved and its advantage (docs/algorithm.md, 7).

Each is one function from `Tokens` to a loss per token, in the table `SURROGATES`; a new one is a function here and an
entry there, or a function in a file of yours and `algorithm.surrogate=module:name`. Sequence ratios need whole
responses, which a micro-batch always holds. Leaves out: weights, KL, importance and metrics (see `learn.loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from capo_ray import extension

SurrogateName = Literal["clip", "cispo", "gspo", "gspo_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a micro-batch that carry loss; all [N]."""

    logprobs: Tensor
    """Of the policy; the one field with a gradient."""
    log_ratio: Tensor
    """`logprobs` less the old ones, clamped."""
    advantages: Tensor
    rows: Tensor
    """The response that each token belongs to, 0 to the number of responses - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """How far a ratio may go."""

    low: float = 0.2
    """A ratio below 1 - low is held there; 1 sets no bound."""
    high: float = 0.2
    """A ratio above 1 + high is held there."""
    dual: float | None = None
    """Where the advantage is negative no token loses more than `dual` times it; None sets no bound."""

    def hold(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(1 - self.low, 1 + self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """What a surrogate makes of the tokens."""

    losses: Tensor  # [N]
    held: Tensor  # [N] bool
    """Which of them it holds back (a metric)."""


def clip(tokens: Tokens, bounds: Clip) -> Surrogate:
    """PPO's, arXiv 1707.06347: -min(ratio A, hold(ratio) A), with `dual` (arXiv 1912.09729) at least dual x A where A
    is negative. A token that is held has no gradient."""
    return _clipped(tokens.log_ratio.exp(), tokens.advantages, bounds)


def cispo(tokens: Tokens, bounds: Clip) -> Surrogate:
    """MiniMax-M1's, arXiv 2506.13585: -hold(ratio) A log-probability, the ratio without gradient. A held ratio only
    weighs its token: none is without a gradient."""
    ratio = tokens.log_ratio.detach().exp()
    held = bounds.hold(ratio)
    return Surrogate(losses=-held * tokens.advantages * tokens.logprobs, held=held != ratio)


def gspo(tokens: Tokens, bounds: Clip) -> Surrogate:
    """GSPO, arXiv 2507.18071: PPO's with the geometric mean of the ratios of a response in place of the token's own,
    and the mean of its advantages."""
    return _clipped(_mean(tokens.log_ratio, tokens.rows).exp(), _mean(tokens.advantages, tokens.rows), bounds)


def gspo_token(tokens: Tokens, bounds: Clip) -> Surrogate:
    """GSPO-token, same source: the value of the response's ratio, the gradient of the token's own, so that tokens of
    one response can have different advantages."""
    sequence = _mean(tokens.log_ratio.detach(), tokens.rows)
    return _clipped((sequence + tokens.logprobs - tokens.logprobs.detach()).exp(), tokens.advantages, bounds)


def _clipped(ratio: Tensor, advantages: Tensor, bounds: Clip) -> Surrogate:
    free = ratio * advantages
    gain = torch.minimum(free, bounds.hold(ratio) * advantages)
    if bounds.dual is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, bounds.dual * advantages), gain)
    return Surrogate(losses=-gain, held=gain != free)


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """Each token gets the mean over its response."""
    size = int(rows.max()) + 1
    sums = values.new_zeros(size).index_add(0, rows, values)
    counts = values.new_zeros(size).index_add(0, rows, torch.ones_like(values))
    return (sums / counts.clamp(min=1))[rows]


SURROGATES: dict[SurrogateName, Callable[[Tokens, Clip], Surrogate]] = {
    "clip": clip,
    "cispo": cispo,
    "gspo": gspo,
    "gspo_token": gspo_token,
}


def surrogate_of(name: str) -> Callable[[Tokens, Clip], Surrogate]:
    """One of `SURROGATES`, or one of a user's, by `module:name`. Raises ValueError."""
    for known, surrogate in SURROGATES.items():
        if name == known:
            return surrogate
    own: Callable[[Tokens, Clip], Surrogate] = extension.load(
        name, callable, is_a="a function of (Tokens, Clip) to a Surrogate"
    )
    return own
