"""Gloo in the place of NCCL, where there is no GPU: all of vLLM's weight transfer is real but the communicator and
CUDA's streams."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo

from capo_ray.config.blocks import Cluster


class OverNccl(Cluster):
    """One on CPU whose weights travel as they do between GPUs."""

    @property
    def weight_transfer(self) -> Literal["shm", "nccl", "ipc"]:
        return "nccl"


class GlooCommunicator:
    """What vLLM asks of its PyNcclCommunicator. Like NCCL's it is made once all are there."""

    made: ClassVar[list["GlooCommunicator"]] = []

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        self.rank, self.world_size = group.rank, group.world_size
        self.destroyed = False
        self._broadcasts = 0
        self._group = group  # rank 0's holds the store
        self._gloo = ProcessGroupGloo(
            PrefixStore("gloo", group.store), self.rank, self.world_size, timedelta(seconds=60)
        )
        GlooCommunicator.made.append(self)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        self._broadcasts += 1
        _die_where_it_is_wanted(self.rank, self._broadcasts)
        options = BroadcastOptions()
        options.rootRank = src
        try:
            self._gloo.broadcast([tensor], options).wait()
        except RuntimeError:
            time.sleep(300)  # NCCL does not notice that a peer is gone
            raise

    def destroy(self) -> None:
        self.destroyed = True


def _die_where_it_is_wanted(rank: int, broadcast: int) -> None:
    """Once: the file that GLOO_DEATH names holds the rank and the number of the broadcast, then the time of death."""
    file = Path(os.environ.get("GLOO_DEATH", os.devnull))
    if file.is_file() and file.read_text() == f"{rank} {broadcast}":
        file.write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    import vllm.distributed.device_communicators.pynccl as pynccl
    import vllm.distributed.weight_transfer.packed_tensor as packed

    put(pynccl, "PyNcclCommunicator", GlooCommunicator)
    put(packed, "_get_streams", lambda device, count: [SimpleNamespace(synchronize=lambda: None)] * count)
    put(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    put(torch.accelerator, "current_device_index", lambda: 0)
    put(torch.accelerator, "synchronize", lambda *device: None)
