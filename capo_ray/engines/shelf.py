"""Tensors put aside for a while: a GPU's into the memory of its host, those of a CPU into a file.

What is moved is the storage beneath, so whoever holds a tensor, or a view of one, finds it again when it is back;
DeepSpeed's own way off a GPU knows ZeRO 1 to 3 alone, and puts other tensors in their place. What lies here is summed
up on its way out and on its way back. Leaves out which tensors those are (trainer_memory).
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterable
from io import BufferedRandom

import torch
from torch import Tensor, UntypedStorage

from capo_ray.engines.protocols import WeightsChanged
from capo_ray.engines.weights import Fingerprint


class Shelf:
    """Of one process."""

    def __init__(self) -> None:
        self._lying: list[tuple[UntypedStorage, int, Tensor | None]] = []
        """Storages, their bytes, and where they are; None: next in the file."""
        self._file: BufferedRandom | None = None
        self._checksum = ""

    def put(self, tensors: Iterable[Tensor]) -> int:
        """Put the storages of `tensors` aside, each once, and return their bytes. Where there is no room for all of
        them nothing has changed. Storages that cannot be cut, of a mapped file, stay."""
        assert not self._lying, "something is put aside already"
        found = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        storages = [storage for storage in found.values() if storage.nbytes() and storage.resizable()]
        self._checksum = _checksum(storages)
        if any(storage.device.type == "cpu" for storage in storages):
            self._file = BufferedRandom(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - closed by `back`
        self._lying = [(storage, storage.nbytes(), self._copy(storage)) for storage in storages]
        for storage in storages:
            storage.resize_(0)
        give_back()
        return sum(size for _, size, _ in self._lying)

    def _copy(self, storage: UntypedStorage) -> Tensor | None:
        if self._file is not None and storage.device.type == "cpu":
            self._file.write(_memory_of(storage))
            return None
        kept = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=True)
        return kept.copy_(_bytes_of(storage))

    def back(self) -> None:
        """Raises WeightsChanged where what comes back is not what was put."""
        if self._file is not None:
            self._file.seek(0)
        for storage, size, kept in self._lying:
            storage.resize_(size)
            if kept is not None:
                _bytes_of(storage).copy_(kept)
            elif self._file is not None:
                self._file.readinto(_memory_of(storage))
        found = _checksum([storage for storage, _, _ in self._lying])
        self._lying.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        if found != self._checksum:
            raise WeightsChanged(f"what the trainer put aside has checksum {found}, and had {self._checksum}")


def give_back() -> None:
    """What allocators keep for later is everybody's again."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _memory_of(storage: UntypedStorage) -> ctypes.Array[ctypes.c_char]:
    """Of a CPU, to write and to read into. Not by numpy: torch cuts no storage that an array of it was made of."""
    return (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())


def _checksum(storages: Iterable[UntypedStorage]) -> str:
    fingerprint = Fingerprint()
    for number, storage in enumerate(storages):
        fingerprint.add(str(number), _bytes_of(storage))
    return fingerprint.hexdigest()
