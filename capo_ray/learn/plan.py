"""Which sequences of a batch go to which rank and stand together in a micro-batch.

Only lengths decide, and who shares a prompt, so the plan can be made where no token is. Leaves out how the sequences of
a micro-batch stand in a forward pass (`learn.packing`) and tensors (`learn.batch`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

from capo_ray.learn.packing import Packing, grouped
from capo_ray.types import TrainSequence

Share = tuple[tuple[tuple[int, ...], ...], ...]
"""One rank's part of a plan: [optimizer step][micro-batch] -> sequence indices."""
Plan = tuple[Share, ...]
"""[rank][optimizer step][micro-batch] -> sequence indices."""
T = TypeVar("T")
_OPEN = 8
"""Micro-batches that are looked at for room, so that a plan takes time in proportion to its sequences."""


class Size(NamedTuple):
    """Tokens of a sequence, and who its prompt is: sequences with equal ones have the same prompt."""

    prompt_tokens: int
    response_tokens: int
    prompt: Hashable

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


def sizes_of(sequences: Sequence[TrainSequence]) -> list[Size]:
    return [Size(len(one.prompt_ids), len(one.token_ids), one.prompt_ids) for one in sequences]


def plan(
    sizes: Sequence[Size],
    *,
    ranks: int,
    tokens_per_micro_batch: int,
    responses_per_update: int | None = None,
    packing: Packing = "padded",
) -> Plan:
    """Spread the sequences of a batch over ranks and micro-batches.

    What holds of the result (see `assert_plan`):
    1. every sequence stands in it once;
    2. optimizer step s holds the s-th `responses_per_update` sequences in order (all of them if None), the last step
       what is left;
    3. in a step all ranks have equally many micro-batches, at least one; those missing are empty;
    4. a micro-batch has at most `tokens_per_micro_batch` tokens as it stands in a forward pass (see `row_tokens`);
    5. in a step the tokens of two ranks, as they would stand in one pass without padding, differ by no more than the
       longest sequence;
    6. it depends on nothing but the arguments.
    """
    for index, size in enumerate(sizes):
        if size.tokens > tokens_per_micro_batch:
            raise ValueError(
                f"sequence {index} has {size.tokens} tokens, more than the {tokens_per_micro_batch} of "
                "tokens_per_micro_batch; raise that number or shorten prompts and responses"
            )
    if packing != "shared":
        sizes = [Size(size.prompt_tokens, size.response_tokens, index) for index, size in enumerate(sizes)]
    count = responses_per_update or len(sizes)
    steps = [
        _plan_step(sizes, range(start, min(start + count, len(sizes))), ranks, tokens_per_micro_batch, packing)
        for start in (range(0, len(sizes), count) if count else ())
    ]
    return tuple(tuple(step[rank] for step in steps) for rank in range(ranks))


def row_tokens(sizes: Sequence[Size], packing: Packing) -> int:
    """Tokens of the forward pass over sequences of these sizes."""
    if packing == "padded":
        return len(sizes) * max((size.tokens for size in sizes), default=0)
    prompts = {size.prompt if packing == "shared" else index: size.prompt_tokens for index, size in enumerate(sizes)}
    return sum(prompts.values()) + sum(size.response_tokens for size in sizes)


def _plan_step(
    sizes: Sequence[Size], indices: Sequence[int], ranks: int, budget: int, packing: Packing
) -> list[tuple[tuple[int, ...], ...]]:
    """[rank][micro-batch] of one optimizer step."""
    cut = [
        _cut_rows(sizes, mine, budget) if packing == "padded" else _cut_row(sizes, mine, budget)
        for mine in _deal(sizes, indices, ranks)
    ]
    count = max(1, *(len(mine) for mine in cut))
    return [(*mine, *((),) * (count - len(mine))) for mine in cut]


class _Hand:
    """What a rank has been dealt, and its tokens in one row: a prompt counts once."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.total = 0
        self._prompts: Counter[Hashable] = Counter()

    def cost(self, size: Size) -> int:
        """Tokens that one more would add."""
        return size.response_tokens + (0 if self._prompts[size.prompt] else size.prompt_tokens)

    def take(self, index: int, size: Size) -> None:
        self.total += self.cost(size)
        self._prompts[size.prompt] += 1
        self.indices.append(index)

    def give(self, index: int, size: Size) -> None:
        self._prompts[size.prompt] -= 1
        self.total -= self.cost(size)
        self.indices.remove(index)


def _deal(sizes: Sequence[Size], indices: Sequence[int], ranks: int) -> list[list[int]]:
    """Sequences of one prompt together, the most tokens first, to the rank with the fewest; then single ones move from
    the fullest rank to the emptiest until no two differ by more than the longest sequence. Each move lowers the
    greater of two totals and leaves the other below it, so this ends. Longest first in each hand."""
    hands = [_Hand() for _ in range(ranks)]
    descending = sorted(indices, key=lambda index: (-sizes[index].tokens, index))
    together = grouped(descending, lambda index: sizes[index].prompt)
    weights = {prompt: row_tokens([sizes[i] for i in members], "shared") for prompt, members in together.items()}
    for prompt in sorted(together, key=lambda prompt: (-weights[prompt], together[prompt][0])):
        hand = min(hands, key=lambda hand: (hand.total, len(hand.indices)))
        for index in together[prompt]:
            hand.take(index, sizes[index])
    longest = max((sizes[index].tokens for index in indices), default=0)
    while True:
        fullest, emptiest = max(hands, key=lambda hand: hand.total), min(hands, key=lambda hand: hand.total)
        if fullest.total - emptiest.total <= longest:
            break
        index = fullest.indices[-1]
        fullest.give(index, sizes[index])
        emptiest.take(index, sizes[index])
    return [sorted(hand.indices, key=lambda index: (-sizes[index].tokens, index)) for hand in hands]


def _cut_rows(sizes: Sequence[Size], descending: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Fill micro-batches in order of falling length, so that neighbours need little padding."""
    micro_batches: list[list[int]] = []
    for index in descending:
        current = micro_batches[-1] if micro_batches else []
        if current and sizes[current[0]].tokens * (len(current) + 1) <= budget:
            current.append(index)
        else:
            micro_batches.append([index])
    return [tuple(indices) for indices in micro_batches]


def _cut_row(sizes: Sequence[Size], descending: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Prompt by prompt, that of the longest sequence first, each into the micro-batch where it adds least, of the last
    few that have room."""
    together = grouped(descending, lambda index: sizes[index].prompt)
    micro_batches: list[_Hand] = []
    for index in (index for members in together.values() for index in members):
        size = sizes[index]
        room = [hand for hand in micro_batches[-_OPEN:] if hand.total + hand.cost(size) <= budget]
        if not room:
            room = [_Hand()]
            micro_batches += room
        min(room, key=lambda hand: hand.cost(size)).take(index, size)
    return [tuple(hand.indices) for hand in micro_batches]


def assert_plan(
    made: Plan,
    sizes: Sequence[Size],
    *,
    tokens_per_micro_batch: int,
    responses_per_update: int | None,
    packing: Packing,
) -> None:
    """Check what the docstring of `plan` promises, but the last point."""
    count = responses_per_update or len(sizes)
    num_steps = -(-len(sizes) // count) if count else 0
    assert all(len(share) == num_steps for share in made)
    for step in range(num_steps):
        of_step = [share[step] for share in made]
        held = sorted(index for micro_batches in of_step for indices in micro_batches for index in indices)
        assert held == list(range(step * count, min((step + 1) * count, len(sizes))))
        assert len({len(micro_batches) for micro_batches in of_step}) == 1 and of_step[0]
        for micro_batches in of_step:
            for indices in micro_batches:
                assert row_tokens([sizes[index] for index in indices], packing) <= tokens_per_micro_batch
        whole: Packing = "shared" if packing == "shared" else "packed"
        tokens = [row_tokens([sizes[i] for indices in mine for i in indices], whole) for mine in of_step]
        assert max(tokens) - min(tokens) <= max(sizes[index].tokens for index in held)


def select(items: Sequence[T], share: Share) -> tuple[tuple[tuple[T, ...], ...], ...]:
    """The items that a rank's share of a plan names, in its shape."""
    return tuple(tuple(tuple(items[index] for index in indices) for indices in step) for step in share)
