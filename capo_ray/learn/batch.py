"""A micro-batch as tensors, and what a batch as a whole gives each of its tokens: denominators, centre and spread.

Only tokens that carry loss reach the loss: they are flat, [N], and say where their logits stand in the forward pass; no
mask is ever derived from a pad id. Leaves out: which sequences stand together (`learn.plan`), how they do
(`learn.packing`), and the loss (`learn.loss`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Literal

from capo_ray.learn.packing import Packing, Segment, lay
from capo_ray.learn.plan import Plan
from capo_ray.types import TrainSequence

if TYPE_CHECKING:
    import torch

Aggregation = Literal["response_mean", "token_mean", "constant"]


def denominators(
    loss_lengths: Sequence[int], made: Plan, aggregation: Aggregation, *, max_response_tokens: int
) -> tuple[float, ...]:
    """Per optimizer step, what the loss is divided by, taken over all ranks (see `token_weight`).

    `loss_lengths[i]` is the number of tokens of sequence i that carry loss. A sequence without any is as good as
    absent: it does not count as a response. A step of nothing but such has denominator 1 and loss 0.
    """
    result = []
    for step in range(len(made[0])):
        counts = [loss_lengths[i] for share in made for indices in share[step] for i in indices if loss_lengths[i]]
        whole = {
            "response_mean": len(counts),
            "token_mean": sum(counts),
            "constant": len(counts) * max_response_tokens,
        }[aggregation]
        result.append(float(max(whole, 1)))
    return tuple(result)


def token_weight(aggregation: Aggregation, loss_length: int, denominator: float) -> float:
    """What the loss of each token of a sequence counts: the loss of an optimizer step is the weighted *sum* of its
    tokens' losses, so how they are spread over ranks and micro-batches changes nothing.

    response_mean: 1 / (N L_i), token_mean: 1 / sum L, constant: 1 / (N max_response_tokens).
    """
    return 1 / (denominator * loss_length) if aggregation == "response_mean" else 1 / denominator


def loss_length(sequence: TrainSequence) -> int:
    return sum(sequence.loss_mask) if sequence.loss_mask else len(sequence.token_ids)


def centre_and_spread(tallies: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """Mean and population standard deviation (plus 1e-6) of the advantages of a whole batch, from the sums of its
    groups' tallies; (0, 1) where they do not differ. REINFORCE++, arXiv 2501.03262."""
    count = total = squares = 0.0
    for tally in tallies:
        count += tally.get("trained_tokens", 0.0)
        total += tally.get("advantage", 0.0)
        squares += tally.get("advantage_squared", 0.0)
    mean = total / max(count, 1.0)
    variance = squares / max(count, 1.0) - mean * mean
    return (mean, sqrt(variance) + 1e-6) if variance > 1e-12 else (mean, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tokens [B, T] for the forward pass; flat [N], what the loss needs of each token that carries it.

    There is no attention mask: where rows are padded, on the right, the model is causal, so what stands after a token
    cannot change it, and padding is never read; where sequences share a row, `segments` say who attends to whom.

    An empty micro-batch has one token of weight 0, so that its forward and backward pass join every collective, and
    `empty` says so.
    """

    input_ids: torch.Tensor  # [B, T]
    places: torch.Tensor  # [N] where in the flattened [B * T] the logits of the token stand: one before the token
    targets: torch.Tensor  # [N] the token
    rows: torch.Tensor  # [N] its sequence, 0 to their number - 1
    weights: torch.Tensor  # [N]
    advantages: torch.Tensor  # [N]
    sampler_logprobs: torch.Tensor  # [N]
    positions: torch.Tensor | None = None  # [1, T]; None: rows are padded
    segments: tuple[Segment, ...] = ()
    empty: bool = False


def collate(
    sequences: Sequence[TrainSequence],
    aggregation: Aggregation,
    denominator: float,
    *,
    packing: Packing = "padded",
    pad_id: int = 0,
    device: str | torch.device = "cpu",
) -> MicroBatch:
    """Tensors of one micro-batch. `pad_id` may be any entry of the vocabulary: nothing looks at it."""
    import torch

    empty = not any(loss_length(sequence) for sequence in sequences)
    laid = lay(sequences, packing, pad_id)
    places: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    weights: list[float] = []
    advantages: list[float] = []
    logprobs: list[float] = []
    for row, (sequence, (first, second)) in enumerate(zip(sequences, laid.predicted, strict=True)):
        taken = [t for t in range(len(sequence.token_ids)) if not sequence.loss_mask or sequence.loss_mask[t]]
        if not taken:
            continue
        if not sequence.prompt_ids and taken[0] == 0:
            raise ValueError("the first token of a sequence without a prompt cannot carry loss: nothing predicts it")
        places.extend(second + t - 1 if t else first for t in taken)
        targets.extend(sequence.token_ids[t] for t in taken)
        rows.extend([row] * len(taken))
        weights.extend([token_weight(aggregation, len(taken), denominator)] * len(taken))
        advantages.extend(sequence.advantages[t] for t in taken)
        logprobs.extend(sequence.logprobs[t] for t in taken)
    if not all(map(isfinite, (*advantages, *logprobs))):
        raise ValueError(_broken(sequences))
    if empty:
        places, targets, rows, weights, advantages, logprobs = [0], [pad_id], [0], [0.0], [0.0], [0.0]

    def whole(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    def real(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return MicroBatch(
        input_ids=whole(laid.token_ids),
        places=whole(places),
        targets=whole(targets),
        rows=whole(rows),
        weights=real(weights),
        advantages=real(advantages),
        sampler_logprobs=real(logprobs),
        positions=None if laid.positions is None else whole([laid.positions]),
        segments=laid.segments,
        empty=empty,
    )


def _broken(sequences: Sequence[TrainSequence]) -> str:
    source = next(s.source for s in sequences if not all(map(isfinite, (*s.advantages, *s.logprobs))))
    named = f" of response {source}" if source else ""
    return f"an advantage or a sampler's log-probability{named} is not finite: one is enough to lose the policy"


def standardised(batch: MicroBatch, centre: float, spread: float) -> MicroBatch:
    """The same with every advantage as (advantage - centre) / spread (see `centre_and_spread`)."""
    if batch.empty or (centre, spread) == (0.0, 1.0):
        return batch
    return replace(batch, advantages=(batch.advantages - centre) / spread)
