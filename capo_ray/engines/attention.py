"""Attention over a row in which sequences stand one after the other, as transformers' models call it.

Registered under NAME; a model that is set to it takes the `segments` of a micro-batch as one more argument of its
forward pass and hands it on to every layer. Each segment is attended to by itself, so no mask of the whole row is made:
on CPU and wherever nothing else is known to be right, through torch's own attention, short segments several to a call;
on GPU in one call of its varlen kernel, once that has given the same on that very card. Leaves out which sequences
stand in a row (`learn.packing`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from capo_ray.learn.packing import Segment

NAME = "capo_segments"
PIECE_ELEMENTS = 2**18
"""Of a mask: queries times keys, its prefix's among them. A segment of more has a call of its own."""
log = logging.getLogger(__name__)
_CHANGES_SCORES = ("softcap", "s_aux", "position_bias")
"""What some models hand to attention beside all that is here."""
Kernel = Callable[[Tensor, Tensor, Tensor, Sequence[Segment], float], Tensor]
"""(queries [1, H, T, D], keys and values [1, K, T, D], segments, scale) -> [1, H, T, D]; H is a multiple of K."""


def register() -> None:
    """Make NAME known to transformers. Without a mask of its own, a model makes none."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """See transformers' AttentionInterface. Raises ValueError where the model did not hand on the segments, or asks for
    what is not done here."""
    if segments is None:
        raise ValueError(
            f"{type(module).__name__} was not handed where the sequences of a row begin: set packing=padded "
            "(trainer.packing of a run)"
        )
    longest = max(end - start + prefix_end - prefix_start for start, end, prefix_start, prefix_end in segments)
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(
            f"{type(module).__name__} attends over {sliding_window} tokens, and a sequence has {longest}: set "
            "packing=padded (trainer.packing of a run)"
        )
    if odd := [name for name in _CHANGES_SCORES if more.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} asks for {', '.join(odd)}: set packing=padded (trainer.packing of a run)"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = kernel_of(str(query.device), query.dtype) if query.is_cuda else in_pieces
    return kernel(query, key, value, segments, scale).transpose(1, 2).contiguous(), None


def in_pieces(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """A call for each piece, whose segments are filled up to its longest."""
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    made = []
    for asking, seen, mask, kept in _pieces(tuple(segments), query.device):
        asked, keys, values = (
            _taken(row, places).transpose(1, 2) for row, places in zip(rows, (asking, seen, seen), strict=True)
        )
        part = scaled_dot_product_attention(
            asked,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        made.append(part.transpose(1, 2).flatten(0, 1).index_select(0, kept))
    return torch.cat(made).transpose(0, 1)[None]


def _taken(row: Tensor, places: Tensor) -> Tensor:
    """Of [T, ...] at [S, N]: [S, N, ...]. On CPU faster than `row[places]`, in its gradient above all."""
    return row.index_select(0, places.flatten()).unflatten(0, places.shape)


class Piece(NamedTuple):
    """S segments that are attended to in one call."""

    asking: Tensor  # [S, Q] tokens of the row
    seen: Tensor  # [S, K] tokens of the row: those of the prefix, then the segment's own
    mask: Tensor | None  # [S, 1, Q, K] true where a token sees another; None: those up to itself
    kept: Tensor  # [N] the places in the flattened [S * Q] of tokens that are none that fill up


@lru_cache(maxsize=4)
def _pieces(segments: tuple[Segment, ...], device: torch.device) -> tuple[Piece, ...]:
    """Of consecutive segments, the same for every layer of a pass."""
    cut: list[list[Segment]] = []
    for segment in segments:
        if not cut or _size([*cut[-1], segment]) > PIECE_ELEMENTS:
            cut.append([])
        cut[-1].append(segment)
    return tuple(Piece(*(x if x is None else x.to(device) for x in _piece(some))) for some in cut)


def _size(segments: Sequence[Segment]) -> int:
    """Elements of a mask of them."""
    queries, keys = zip(*map(_lengths, segments), strict=True)
    return len(segments) * max(queries) * max(keys)


def _lengths(segment: Segment) -> tuple[int, int]:
    """Queries and keys."""
    own = segment.end - segment.start
    return own, own + segment.prefix_end - segment.prefix_start


def _piece(segments: Sequence[Segment]) -> Piece:
    """What fills up a segment sees what the segment's last token sees, and is thrown away."""
    start, end, prefix_start, prefix_end = torch.tensor(segments)[:, :, None].unbind(1)
    own, prefix = end - start, prefix_end - prefix_start
    asking, seen = torch.arange(int(own.max())), torch.arange(int((own + prefix).max()))
    kept, there = asking < own, seen < own + prefix
    mask = None
    if len(segments) > 1 or prefix.any():
        mask = (there[:, None] & (seen <= (prefix[..., None] + asking[:, None])))[:, None]
    keys = torch.where(seen < prefix, prefix_start + seen, start + seen - prefix)
    own_places = kept.flatten().nonzero()[:, 0]
    return Piece(torch.where(kept, start + asking, start), torch.where(there, keys, start), mask, own_places)


def varlen(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """One call for all: keys are laid out so that each segment's follow its prefix's. A causal query of a segment sees
    all keys but those that its later tokens have, as in FlashAttention 2.1 and later."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, taken, most_queries, most_keys = _laid_out(tuple(segments), query.device)
    if taken is not None:
        key, value = key[:, :, taken], value[:, :, taken]
    made: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        queries,
        keys,
        most_queries,
        most_keys,
        window_size=(-1, 0),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return made.transpose(0, 1)[None]


@lru_cache(maxsize=4)
def _laid_out(segments: tuple[Segment, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, int, int]:
    """Where queries and keys of each segment begin, which keys in which order (None: as they stand), and the most of
    each. The same for every layer of a pass."""
    queries = [end - start for start, end, _, _ in segments]
    keys = [end - start + prefix_end - prefix_start for start, end, prefix_start, prefix_end in segments]
    taken = None
    if keys != queries:
        spans = [span for start, end, *prefix in segments for span in (tuple(prefix), (start, end))]
        taken = torch.cat([torch.arange(*span) for span in spans]).to(device)
    return _bounds(queries, device), _bounds(keys, device), taken, max(queries), max(keys)


def _bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


@cache
def kernel_of(device: str, dtype: torch.dtype) -> Kernel:
    """The faster way where it agrees with the slower one on this device, in values and gradients."""
    why = disagreement(varlen, device, dtype)
    if why is None:
        return varlen
    level = logging.INFO if dtype == torch.float32 else logging.WARNING  # the kernel is made for 16 bits alone
    log.log(level, "attention goes in pieces on %s, since torch's varlen kernel %s", device, why)
    return in_pieces


def disagreement(kernel: Kernel, device: str, dtype: torch.dtype) -> str | None:
    """What is wrong with a kernel, by a row of every kind of segment; None where nothing is."""
    generator = torch.Generator().manual_seed(0)
    segments = (Segment(0, 70, 0, 0), Segment(70, 75, 0, 0), Segment(75, 141, 70, 75), Segment(141, 144, 70, 75))
    shapes = ((1, 4, 144, 64), (1, 2, 144, 64), (1, 2, 144, 64))
    given = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]

    def results(way: Kernel) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # it may be asked for where nothing is learned
            made = way(*given, segments, 0.125)  # type: ignore[arg-type, call-arg]
            return made, *torch.autograd.grad(made.float().square().sum(), given)

    known = results(in_pieces)
    try:
        tried = results(kernel)
    except (RuntimeError, NotImplementedError, ImportError, ValueError, TypeError) as error:
        return f"fails: {' '.join(str(error).split())[:200]}"
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for one, other in zip(known, tried, strict=True):
        if not torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance):
            return f"is off by {(one - other).abs().max():.2g}"
    return None
