"""What both ends of a weight sync agree on: the checksum.

The trainer fingerprints every tensor as it is gathered, each engine every tensor as it arrives, before it is loaded.
Sums of the raw bits in 64-bit integers run on any device and do not depend on order or on how the transfer is cut, so
equal checksums mean equal tensors under equal names. Leaves out the transports (weights_shm, weights_gpu) and who
receives them (receivers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

CHUNK = 1 << 22
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

NamedTensor = tuple[str, torch.Tensor]


class Fingerprint:
    """Checksum of a set of named tensors, fed in any order."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        plain, weighted = _bit_sums(tensor.detach())
        shape = "x".join(map(str, tensor.shape))
        self._parts[name] = f"{name}:{shape}:{tensor.dtype}:{plain}:{weighted}"

    def hexdigest(self) -> str:
        lines = "\n".join(self._parts[name] for name in sorted(self._parts))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    def tap(self, weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
        """Pass `weights` on, adding each."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor


def _bit_sums(tensor: torch.Tensor) -> tuple[int, int]:
    """Sum of the bit patterns, and the same weighted by position, modulo 2**64."""
    bits = tensor.contiguous().view(-1).view(_BITS[tensor.element_size()])
    weights = torch.arange(1, min(CHUNK, bits.numel()) + 1, device=bits.device, dtype=torch.int64)
    plain = torch.zeros((), device=bits.device, dtype=torch.int64)
    weighted = torch.zeros((), device=bits.device, dtype=torch.int64)
    for number, chunk in enumerate(bits.split(CHUNK), start=1):
        wide = chunk.to(torch.int64)
        plain += wide.sum()
        weighted += (wide * weights[: wide.numel()]).sum() * number
    return int(plain), int(weighted)


class Sender(Protocol):
    """The trainer's end of a transport. Every rank calls `send`; rank 0 alone transmits."""

    def send(self, weights: Iterable[NamedTensor], version: int) -> str:
        """Sync every engine to `weights`, wait until each has confirmed, and return the checksum (rank 0; else "")."""
        ...

    def close(self) -> None:
        """Release what connects it to the engines."""
        ...
