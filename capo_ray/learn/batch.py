"""From the responses of a batch to the micro-batches of every rank, and from a micro-batch to tensors.

Only token lengths decide the plan, so it can be made where no token is. Only tokens that carry loss reach the loss:
they are flat, [N], and say where their logits stand in the padded forward pass; no mask is ever derived from a pad id.
Leaves out: the loss (see `learn.loss`) and whoever sends the shares to the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Literal, TypeVar

from capo_ray.types import TrainSequence

if TYPE_CHECKING:
    import torch

Aggregation = Literal["response_mean", "token_mean", "constant"]
Share = tuple[tuple[tuple[int, ...], ...], ...]
"""One rank's part of a plan: [optimizer step][micro-batch] -> sequence indices."""
Plan = tuple[Share, ...]
"""[rank][optimizer step][micro-batch] -> sequence indices."""
T = TypeVar("T")


def plan(
    lengths: Sequence[int], *, ranks: int, tokens_per_micro_batch: int, responses_per_update: int | None = None
) -> Plan:
    """Spread the sequences of a batch, given their lengths (prompt and response), over ranks and micro-batches.

    What holds of the result (see `assert_plan`):
    1. every sequence stands in it once;
    2. optimizer step s holds the s-th `responses_per_update` sequences in order (all of them if None), the last step
       what is left;
    3. in a step all ranks have equally many micro-batches, at least one; those missing are empty;
    4. a micro-batch, padded to its longest sequence, has at most `tokens_per_micro_batch` tokens;
    5. in a step the tokens of two ranks differ by no more than the longest sequence;
    6. it depends on nothing but the arguments.
    """
    for index, length in enumerate(lengths):
        if length > tokens_per_micro_batch:
            raise ValueError(
                f"sequence {index} has {length} tokens, more than the {tokens_per_micro_batch} of "
                "tokens_per_micro_batch; raise that number or shorten prompts and responses"
            )
    size = responses_per_update or len(lengths)
    starts = range(0, len(lengths), size) if size else ()
    steps = [
        _plan_step(lengths, range(start, min(start + size, len(lengths))), ranks, tokens_per_micro_batch)
        for start in starts
    ]
    return tuple(tuple(step[rank] for step in steps) for rank in range(ranks))


def _plan_step(
    lengths: Sequence[int], indices: Sequence[int], ranks: int, budget: int
) -> list[tuple[tuple[int, ...], ...]]:
    """[rank][micro-batch] of one optimizer step: longest first to the rank with the fewest tokens, then cut."""
    totals = [0] * ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(indices, key=lambda index: (-lengths[index], index)):
        rank = min(range(ranks), key=lambda rank: (totals[rank], len(dealt[rank]), rank))
        dealt[rank].append(index)
        totals[rank] += lengths[index]
    cut = [_cut(lengths, mine, budget) for mine in dealt]
    count = max(1, *(len(mine) for mine in cut))
    return [(*mine, *((),) * (count - len(mine))) for mine in cut]


def _cut(lengths: Sequence[int], descending: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Fill micro-batches in order of falling length, so that neighbours need little padding."""
    micro_batches: list[list[int]] = []
    for index in descending:
        current = micro_batches[-1] if micro_batches else []
        if current and lengths[current[0]] * (len(current) + 1) <= budget:
            current.append(index)
        else:
            micro_batches.append([index])
    return [tuple(indices) for indices in micro_batches]


def assert_plan(
    made: Plan, lengths: Sequence[int], *, tokens_per_micro_batch: int, responses_per_update: int | None
) -> None:
    """Check what the docstring of `plan` promises, but the last point."""
    size = responses_per_update or len(lengths)
    num_steps = -(-len(lengths) // size) if size else 0
    assert all(len(share) == num_steps for share in made)
    for step in range(num_steps):
        of_step = [share[step] for share in made]
        held = sorted(index for micro_batches in of_step for indices in micro_batches for index in indices)
        assert held == list(range(step * size, min((step + 1) * size, len(lengths))))
        assert len({len(micro_batches) for micro_batches in of_step}) == 1 and of_step[0]
        for micro_batches in of_step:
            for indices in micro_batches:
                assert len(indices) * max((lengths[index] for index in indices), default=0) <= tokens_per_micro_batch
        tokens = [sum(lengths[index] for indices in micro_batches for index in indices) for micro_batches in of_step]
        assert max(tokens) - min(tokens) <= max(lengths[index] for index in held)


def select(items: Sequence[T], share: Share) -> tuple[tuple[tuple[T, ...], ...], ...]:
    """The items that a rank's share of a plan names, in its shape."""
    return tuple(tuple(tuple(items[index] for index in indices) for indices in step) for step in share)


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
    """Right-padded sequences [B, T] for the forward pass; flat [N], what the loss needs of each token that carries it.

    There is no attention mask: the model is causal, so what stands after a token cannot change it, and padding is never
    read. Leaving the mask out lets attention take its fast causal path.

    An empty micro-batch still has one token, so that its forward and backward pass join every collective; it has
    weight 0 and `empty` says so.
    """

    input_ids: torch.Tensor  # [B, T]
    places: torch.Tensor  # [N] where in the flattened [B * T] the logits of the token stand: one before the token
    targets: torch.Tensor  # [N] the token
    rows: torch.Tensor  # [N] its sequence, 0 to B - 1
    weights: torch.Tensor  # [N]
    advantages: torch.Tensor  # [N]
    sampler_logprobs: torch.Tensor  # [N]
    empty: bool = False


def collate(
    sequences: Sequence[TrainSequence],
    aggregation: Aggregation,
    denominator: float,
    *,
    pad_id: int = 0,
    device: str | torch.device = "cpu",
) -> MicroBatch:
    """Tensors of one micro-batch. `pad_id` may be any entry of the vocabulary: nothing looks at it."""
    import torch

    empty = not any(loss_length(sequence) for sequence in sequences)
    longest = max((len(s.prompt_ids) + len(s.token_ids) for s in sequences), default=2)
    input_ids: list[list[int]] = []
    places: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    weights: list[float] = []
    advantages: list[float] = []
    logprobs: list[float] = []
    for row, sequence in enumerate(sequences):
        tokens = [*sequence.prompt_ids, *sequence.token_ids]
        input_ids.append(tokens + [pad_id] * (longest - len(tokens)))
        taken = [t for t in range(len(sequence.token_ids)) if not sequence.loss_mask or sequence.loss_mask[t]]
        if not taken:
            continue
        before = len(sequence.prompt_ids) - 1
        if before + taken[0] < 0:
            raise ValueError("the first token of a sequence without a prompt cannot carry loss: nothing predicts it")
        places.extend(row * longest + before + t for t in taken)
        targets.extend(sequence.token_ids[t] for t in taken)
        rows.extend([row] * len(taken))
        weights.extend([token_weight(aggregation, len(taken), denominator)] * len(taken))
        advantages.extend(sequence.advantages[t] for t in taken)
        logprobs.extend(sequence.logprobs[t] for t in taken)
    if not all(map(isfinite, (*advantages, *logprobs))):
        raise ValueError(_broken(sequences))
    if not sequences:
        input_ids = [[pad_id] * longest]
    if empty:
        places, targets, rows, weights, advantages, logprobs = [0], [pad_id], [0], [0.0], [0.0], [0.0]

    def whole(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    def real(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return MicroBatch(
        input_ids=whole(input_ids),
        places=whole(places),
        targets=whole(targets),
        rows=whole(rows),
        weights=real(weights),
        advantages=real(advantages),
        sampler_logprobs=real(logprobs),
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
