"""Log-probabilities that an update compares with, made before it: while critics judge, trainer ranks are idle.

Those of the policy as it stands between two updates ("old") and of the reference. They are kept by the tokens of a
sequence, so what becomes of a response and which rank trains on it may be decided later. Leaves out who says when
(cluster.ahead).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capo_ray.learn.batch import MicroBatch
from capo_ray.learn.packing import Packing
from capo_ray.learn.plan import plan, sizes_of
from capo_ray.types import TrainSequence

Key = tuple[str, tuple[int, ...], tuple[int, ...]]
"""(whose, prompt, response)."""
Nested = list[list[Tensor]]
"""[optimizer step][micro-batch], [N] each."""


class Ahead:
    """Every method is collective, and every rank knows the same."""

    def __init__(
        self,
        collate: Callable[[Sequence[TrainSequence]], MicroBatch],
        *,
        temperature: float,
        budget: int,
        packing: Packing,
        device: torch.device,
    ) -> None:
        """`budget`: tokens of a micro-batch."""
        self._collate, self._temperature = collate, temperature
        self._budget, self._packing, self._device = budget, packing, device
        self._known: dict[Key, Tensor] = {}

    def clear(self) -> None:
        """What was known was of weights that are gone."""
        self._known = {}

    def score(self, scorers: Mapping[str, Any], mine: Sequence[TrainSequence] | None) -> None:
        """Learn all tokens of all ranks' sequences. Where one rank has lost its own (None), nothing is learned."""
        share = self._shared(mine)
        if share is None:
            return
        found: dict[Key, Tensor] = {}
        for sequences in share:
            batch = self._collate(sequences)
            for whose, scorer in scorers.items():
                with torch.no_grad():
                    logprobs = scorer(batch, self._temperature)[0].cpu()
                start = 0
                for sequence in sequences:
                    end = start + len(sequence.token_ids)
                    found[_key(whose, sequence)] = logprobs[start:end].clone()  # a view would travel as the whole
                    start = end
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, found)
        for one in everybody:
            self._known |= one

    def of(self, whose: str, shares: Sequence[Sequence[Sequence[TrainSequence]]]) -> Nested | None:
        """Of the tokens that carry loss; None unless every rank knows all that it asks for."""
        if not self._known:
            return None
        lacking = any(_key(whose, one) not in self._known for step in shares for some in step for one in some)
        if not self._all_say(not lacking):
            return None
        return [[self._flat(whose, sequences) for sequences in step] for step in shares]

    def _shared(self, mine: Sequence[TrainSequence] | None) -> list[list[TrainSequence]] | None:
        """Micro-batches of this rank, as many as any rank has: collectives must match."""
        if not self._all_say(mine is not None):
            return None
        made = plan(sizes_of(mine or ()), ranks=1, tokens_per_micro_batch=self._budget, packing=self._packing)
        (step,) = made[0] or ((),)
        count = torch.tensor(len(step), device=self._device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        cut = [[(mine or ())[index] for index in indices] for indices in step]
        return [*cut, *([] for _ in range(int(count) - len(cut)))]

    def _all_say(self, yes: bool) -> bool:
        said = torch.tensor(int(yes), device=self._device)
        dist.all_reduce(said, op=dist.ReduceOp.MIN)
        return bool(said)

    def _flat(self, whose: str, sequences: Sequence[TrainSequence]) -> Tensor:
        parts = [_carrying(self._known[_key(whose, sequence)], sequence) for sequence in sequences]
        flat = torch.cat(parts) if parts else torch.zeros(0)
        return (flat if len(flat) else torch.zeros(1)).to(self._device)  # an empty micro-batch has one token


def _carrying(logprobs: Tensor, sequence: TrainSequence) -> Tensor:
    return logprobs[torch.tensor(sequence.loss_mask)] if sequence.loss_mask else logprobs


def _key(whose: str, sequence: TrainSequence) -> Key:
    return whose, sequence.prompt_ids, sequence.token_ids
