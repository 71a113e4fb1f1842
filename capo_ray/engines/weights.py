"""What both ends of a weight sync agree on: the checksum.

The trainer fingerprints every tensor as it is gathered, each engine every tensor as it arrives, before it is loaded.
Sums of the raw bytes as 64-bit integers run on any device and do not depend on order or on how the transfer is cut.
They are made to notice mistakes (a tensor that is missing, stale, moved or cut off, a flipped bit), not forgeries.
Leaves out the transports (weights_shm, weights_gpu) and who receives them (receivers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

WORD = 8
"""Bytes."""
CHUNK = {"cpu": 1 << 16}
"""Words taken at a time: on CPU as many as its cache holds, elsewhere few kernels."""

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
    """Sum of the words, and that of the folded words weighted by position from 1 on, modulo 2**64. A word is folded,
    its upper half onto its lower, since a product loses its top bits. Zeros fill the last word up."""
    words = _words(tensor)
    chunk = min(CHUNK.get(words.device.type, 1 << 22), len(words))
    places = torch.arange(1, chunk + 1, device=words.device)
    plain = torch.zeros((), device=words.device, dtype=torch.int64)
    weighted = torch.zeros_like(plain)
    for start in range(0, len(words), max(chunk, 1)):
        part = words[start : start + chunk]
        plain += part.sum()
        folded = part ^ (part >> 32)
        weighted += (folded * places[: len(part)]).sum() + start * folded.sum()
    return int(plain), int(weighted)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes as 64-bit integers, without a copy where they are whole ones and begin as such."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    lacking = -len(flat) % WORD
    if lacking:
        flat = torch.nn.functional.pad(flat, (0, lacking))
    elif flat.storage_offset() % WORD or flat.data_ptr() % WORD:
        flat = flat.clone()
    return flat.view(torch.int64)


class Sender(Protocol):
    """The trainer's end of a transport. Every rank calls `send`; rank 0 alone transmits."""

    def send(self, weights: Iterable[NamedTensor], version: int) -> str:
        """Sync every engine to `weights`, wait until each has confirmed, and return the checksum (rank 0; else "")."""
        ...

    def close(self) -> None:
        """Release what connects it to the engines."""
        ...
