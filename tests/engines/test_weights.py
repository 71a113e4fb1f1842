"""The checksum of both ends of a weight sync, against the same sums in Python's integers."""

import pytest
import torch

from capo_ray.engines import weights
from capo_ray.engines.weights import Fingerprint


def checksum(**tensors: torch.Tensor) -> str:
    fingerprint = Fingerprint()
    for name, tensor in tensors.items():
        fingerprint.add(name, tensor)
    return fingerprint.hexdigest()


def by_hand(tensor: torch.Tensor) -> tuple[int, int]:
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    raw += bytes(-len(raw) % 8)
    words = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]
    sums = (sum(words), sum(place * (word ^ (word >> 32)) for place, word in enumerate(words, 1)))
    return tuple((total + 2**63) % 2**64 - 2**63 for total in sums)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 65, 1001])
def test_sums_are_of_all_bytes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int) -> None:
    tensor = (100 * torch.randn(count, generator=torch.Generator().manual_seed(count))).to(dtype)
    monkeypatch.setattr(weights, "CHUNK", {"cpu": 16})  # however many are taken at a time
    assert weights._bit_sums(tensor) == by_hand(tensor)


def test_where_a_tensor_begins_does_not_matter() -> None:
    row = torch.randn(41, generator=torch.Generator().manual_seed(0))
    for begin in (0, 1, 2, 3):
        assert checksum(a=row[begin:]) == checksum(a=row[begin:].clone())
    square = row[:36].view(6, 6)
    assert checksum(a=square.T) == checksum(a=square.T.contiguous()) != checksum(a=square)


def test_whatever_differs_is_told() -> None:
    one = torch.arange(8, dtype=torch.float32)
    swapped = one[[1, 0, 2, 3, 4, 5, 6, 7]]  # within a word
    moved = one[[2, 3, 0, 1, 4, 5, 6, 7]]  # whole words
    nudged = one.clone()
    nudged[5] = torch.nextafter(nudged[5], torch.tensor(9.0))
    others = [one, swapped, moved, nudged, one.view(2, 4), one.view(torch.int32), one[:7]]
    assert len({checksum(a=other) for other in others} | {checksum(b=one)}) == 8
    assert checksum(a=one, b=moved) == checksum(b=moved, a=one)


def test_the_last_number_of_a_word_counts_by_its_place_too() -> None:
    """Its top bits alone would be lost in a product by place."""
    one = torch.randn(4 * 70_000, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    flipped, swapped = one.clone(), one.clone()
    for word in (10, 12):
        flipped[4 * word + 3] *= -1
    swapped[[3, 4 * 65_536 + 3]] = one[[4 * 65_536 + 3, 3]]
    assert len({checksum(a=other) for other in (one, flipped, swapped)}) == 3
