"""How the sequences of a micro-batch stand in one forward pass.

padded: a row each, filled up to the longest. packed: one after the other in a single row, where each attends to itself
alone. shared: packed, and a prompt that several of them have stands there once, before its responses, each of which
attends to the prompt and to itself. All three are the same function of the same tokens: rows differ in what is computed
for nothing or twice. Works on token ids; leaves out tensors (`learn.batch`), which sequences come together
(`learn.plan`) and attention itself (`engines.attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from capo_ray.types import TrainSequence

Packing = Literal["padded", "packed", "shared"]


class Segment(NamedTuple):
    """Tokens `start` to `end` of a row attend to tokens `prefix_start` to `prefix_end`, all of them, and to themselves
    from the first on."""

    start: int
    end: int
    prefix_start: int
    prefix_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The tokens of a forward pass."""

    token_ids: list[list[int]]
    """[B][T]; one row unless padded."""
    positions: list[int] | None
    """Of each token in its own sequence, [T]; None where padded."""
    segments: tuple[Segment, ...]
    """Of the one row; none where padded."""
    predicted: list[tuple[int, int]]
    """Of each sequence: where in the flattened rows the logits of its first response token stand, and of its second;
    those of the others follow."""


def lay(sequences: Sequence[TrainSequence], packing: Packing, pad_id: int) -> Rows:
    """An empty micro-batch has two tokens of `pad_id`, so that a pass over it joins every collective."""
    if packing == "padded":
        return _padded(sequences, pad_id)
    return _packed(sequences, pad_id, share=packing == "shared")


def _padded(sequences: Sequence[TrainSequence], pad_id: int) -> Rows:
    longest = max((sequence.length for sequence in sequences), default=2)
    rows = [[*s.prompt_ids, *s.token_ids, *[pad_id] * (longest - s.length)] for s in sequences]
    firsts = [row * longest + len(sequence.prompt_ids) - 1 for row, sequence in enumerate(sequences)]
    return Rows(
        token_ids=rows or [[pad_id] * longest],
        positions=None,
        segments=(),
        predicted=[(first, first + 1) for first in firsts],
    )


def _packed(sequences: Sequence[TrainSequence], pad_id: int, *, share: bool) -> Rows:
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    predicted: dict[int, tuple[int, int]] = {}

    def put(ids: Sequence[int], at: int, prefix: tuple[int, int] = (0, 0)) -> int:
        """A segment of tokens at positions from `at` on; returns where it starts."""
        start = len(tokens)
        tokens.extend(ids)
        positions.extend(range(at, at + len(ids)))
        segments.append(Segment(start, len(tokens), *prefix))
        return start

    alike = grouped(range(len(sequences)), lambda index: sequences[index].prompt_ids if share else index)
    for members in alike.values():
        prompt = sequences[members[0]].prompt_ids
        if len(members) == 1 or not prompt:
            for index in members:
                first = put([*prompt, *sequences[index].token_ids], 0) + len(prompt) - 1
                predicted[index] = (first, first + 1)
            continue
        begin = put(prompt, 0)
        end = begin + len(prompt)
        for index in members:
            predicted[index] = (end - 1, put(sequences[index].token_ids, len(prompt), (begin, end)))
    if not tokens:
        put([pad_id] * 2, 0)
    return Rows(
        token_ids=[tokens],
        positions=positions,
        segments=tuple(segments),
        predicted=[predicted[index] for index in range(len(sequences))],
    )


def grouped(indices: Iterable[int], key: Callable[[int], Hashable]) -> dict[Hashable, list[int]]:
    """Indices by their key, keys in the order in which they come first."""
    found: dict[Hashable, list[int]] = {}
    for index in indices:
        found.setdefault(key(index), []).append(index)
    return found
