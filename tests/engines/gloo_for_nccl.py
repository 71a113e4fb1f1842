"""Gloo in the place of NCCL, where there is no GPU: all of vLLM's weight transfer is real but the communicator and
CUDA's streams."""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo


class GlooCommunicator:
    """What vLLM asks of its PyNcclCommunicator. Like NCCL's it is made once all are there."""

    made: ClassVar[list["GlooCommunicator"]] = []

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        self.rank, self.world_size = group.rank, group.world_size
        self.destroyed = False
        self._group = group  # rank 0's holds the store
        self._gloo = ProcessGroupGloo(
            PrefixStore("gloo", group.store), self.rank, self.world_size, timedelta(seconds=60)
        )
        GlooCommunicator.made.append(self)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        options = BroadcastOptions()
        options.rootRank = src
        self._gloo.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        self.destroyed = True


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    import vllm.distributed.device_communicators.pynccl as pynccl
    import vllm.distributed.weight_transfer.packed_tensor as packed

    put(pynccl, "PyNcclCommunicator", GlooCommunicator)
    put(packed, "_get_streams", lambda device, count: [SimpleNamespace(synchronize=lambda: None)] * count)
    put(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    put(torch.accelerator, "current_device_index", lambda: 0)
    put(torch.accelerator, "synchronize", lambda *device: None)
