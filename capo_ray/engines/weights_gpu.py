"""The trainer's end of weight sync between GPUs: vLLM's own `nccl` (across machines) and `ipc` (one GPU shared).

vLLM's trainer engine drives the four calls; this adds what the shared-memory transport has too: the tensors are
fingerprinted as they are gathered, and every engine must confirm them. Leaves out the receiving end (weights_receive)
and who that is (receivers).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import vllm.distributed.utils
from torch.distributed import TCPStore
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from capo_ray.engines.ports import free_port
from capo_ray.engines.receivers import Receivers
from capo_ray.engines.weights import Fingerprint, NamedTensor

BUFFER_BYTES = 1 << 28
Metadata = Callable[[], list[tuple[str, torch.dtype, tuple[int, ...]]]]
"""Names, types and shapes of what will be sent, in order, without gathering anything."""


def _store(host: str, port: int, listen_socket: socket.socket | None = None, **how: Any) -> TCPStore:
    """vLLM's `create_tcp_store`, which closes the socket once more where the store is not made in time. Torch has
    closed it by then, so that its number, after 300 s in a thread that nobody waits for, may be any other file's."""
    listening = None if listen_socket is None else listen_socket.detach()
    return TCPStore(host, port, master_listen_fd=listening, **how)


vllm.distributed.utils.create_tcp_store = _store


class GatheredSource(WeightSource):
    """The weights of one sync, as vLLM's trainer engine wants them: declared first, then gathered one by one."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.weights: Iterable[NamedTensor] = ()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._metadata()]

    def __iter__(self) -> Iterator[NamedTensor]:
        return iter(self.weights)


class GpuSender:
    """See weights.Sender."""

    def __init__(
        self,
        kind: Literal["nccl", "ipc"],
        receivers: Receivers | None,
        metadata: Metadata,
        *,
        rank: int,
        host: str,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """`receivers` is None on every rank but 0. `host`: the address of this machine as the others reach it, which
        the address of its name need not be (127.0.1.1). `buffer_bytes`: of one piece; a larger tensor is one alone."""
        self._receivers = receivers
        self._device = torch.accelerator.current_device_index()
        self._source = GatheredSource(metadata)
        info: Any
        if kind == "ipc":
            # In pieces: whole, every rank would hold a second copy of the model.
            largest = max((math.prod(shape) * dtype.itemsize for _, dtype, shape in metadata()), default=0)
            info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(buffer_bytes, largest))
        else:
            port, world = (free_port(""), receivers.world_size) if receivers is not None else (0, 0)
            info = NCCLTrainerInitInfo(
                master_address=host,
                master_port=port,
                world_size=world,
                rank=rank,
                packed_buffer_size_bytes=buffer_bytes,
            )

        def open_transfer() -> Any:
            return WeightTransferTrainerFactory.trainer_init(info, client=receivers, source=self._source)

        self._engine = self._watched(open_transfer, "the rollout workers to join the weight transfer")

    def send(self, weights: Iterable[NamedTensor], version: int) -> str:
        if self._receivers is None:
            self._source.weights = weights
            self._engine.send_weights()
            return ""
        fingerprint = Fingerprint()
        self._source.weights = fingerprint.tap(weights)
        self._receivers.version = version
        self._watched(self._engine.send_weights, f"the weights of version {version} to be sent")
        return self._receivers.confirm(fingerprint.hexdigest())

    def close(self) -> None:
        self._engine.shutdown()

    def _watched(self, work: Callable[[], Any], what: str) -> Any:
        return work() if self._receivers is None else self._receivers.during(lambda: self._on_device(work), what)

    def _on_device(self, work: Callable[[], Any]) -> Any:
        """A new thread is on device 0."""
        if torch.cuda.is_available():
            torch.cuda.set_device(self._device)
        return work()
