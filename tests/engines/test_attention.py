"""Attention over sequences in one row, against each by itself; and which kernel is trusted."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from capo_ray.engines import attention
from capo_ray.learn.packing import Segment

CPU = ("cpu", torch.float32)


def test_each_segment_attends_to_its_prefix_and_itself() -> None:
    segments = (Segment(0, 3, 0, 0), Segment(3, 4, 0, 3), Segment(4, 9, 0, 3), Segment(9, 11, 0, 0))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 11, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 11, 8, generator=generator)
    made = attention.in_pieces(query, key, value, segments, 0.3)
    torch.testing.assert_close(made, masked(query, key, value, segments, 0.3))


def test_a_model_that_hands_on_no_segments_is_refused() -> None:
    row = torch.zeros(1, 1, 3, 8)
    with pytest.raises(
        ValueError,
        match=r"^Linear was not handed where the sequences .* set packing=padded \(trainer.packing of a run\)$",
    ):
        attention.attend(torch.nn.Linear(1, 1), row, row, row, None)


def test_a_model_that_asks_for_more_is_refused() -> None:
    row = torch.zeros(1, 1, 3, 8)
    with pytest.raises(ValueError, match=r"^Linear asks for softcap: set packing=padded"):
        attention.attend(torch.nn.Linear(1, 1), row, row, row, None, segments=(Segment(0, 3, 0, 0),), softcap=30.0)


def leaks(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """The whole row as one sequence."""
    whole = (Segment(0, query.shape[2], 0, 0),)
    return attention.in_pieces(query, key, value, whole, scale)


def masked(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """The whole row under one mask."""
    sees = torch.zeros(query.shape[2], query.shape[2], dtype=torch.bool)
    for start, end, prefix_start, prefix_end in segments:
        sees[start:end, prefix_start:prefix_end] = True
        sees[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
    return scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scale, enable_gqa=True)


def breaks(*_: Any) -> Tensor:
    raise RuntimeError("no such\n kernel")


def test_a_kernel_is_trusted_where_it_gives_the_same() -> None:
    assert attention.disagreement(attention.in_pieces, *CPU) is None
    assert attention.disagreement(masked, "cpu", torch.bfloat16) is None
    with torch.no_grad():  # as when a rank first asks, in a pass that learns nothing
        assert attention.disagreement(masked, *CPU) is None
    assert (attention.disagreement(leaks, *CPU) or "").startswith("is off by ")
    assert attention.disagreement(breaks, *CPU) == "fails: no such kernel"


@pytest.mark.parametrize("elements", [1, 50, 400, 2**18])
def test_pieces_of_any_size_give_what_one_mask_gives(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PIECE_ELEMENTS", elements)
    attention._pieces.cache_clear()
    spans = ((0, 7, 0, 0), (7, 9, 0, 0), (9, 20, 7, 9), (20, 23, 7, 9), (23, 24, 0, 0))
    segments = tuple(Segment(*span) for span in spans)
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(1, heads, 24, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    results = []
    for way in (masked, attention.in_pieces):
        made = way(*given, segments, 0.3)
        results.append((made, *torch.autograd.grad(made.square().sum(), given)))
    attention._pieces.cache_clear()
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_without_the_kernel_segments_go_in_pieces(caplog: pytest.LogCaptureFixture) -> None:
    """torch's varlen kernel is for GPUs alone."""
    attention.kernel_of.cache_clear()
    caplog.set_level("INFO")
    assert attention.kernel_of(*CPU) is attention.in_pieces
    assert "attention goes in pieces on cpu, since torch's varlen kernel fails: " in caplog.text
    attention.kernel_of.cache_clear()


def test_the_kernel_is_handed_keys_in_the_order_of_its_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its place taken by a loop over the bounds that it is given, values and gradients are those of the segments:
    what it is called with is right, whether or not it is here."""

    def loop(
        query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, max_q: int, max_k: int, **how: Any
    ) -> Tensor:
        assert how["window_size"] == (-1, 0) and queries.dtype == keys.dtype == torch.int32
        assert max_q == queries.diff().max() and max_k == keys.diff().max()
        parts = []
        for i in range(len(queries) - 1):
            q, k = slice(*queries[i : i + 2].tolist()), slice(*keys[i : i + 2].tolist())
            sees = torch.ones(q.stop - q.start, k.stop - k.start).tril(k.stop - k.start - q.stop + q.start).bool()
            parts.append(
                scaled_dot_product_attention(
                    query[q].transpose(0, 1),
                    key[k].transpose(0, 1),
                    value[k].transpose(0, 1),
                    attn_mask=sees,
                    scale=how["scale"],
                    enable_gqa=how["enable_gqa"],
                ).transpose(0, 1)
            )
        return torch.cat(parts)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", loop)
    assert attention.disagreement(attention.varlen, *CPU) is None
