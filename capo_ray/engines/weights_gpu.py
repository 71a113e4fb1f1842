"""The trainer's end of weight sync between GPUs: vLLM's own `nccl` (across machines) and `ipc` (one GPU shared).

vLLM's trainer engine drives the four calls; this adds what the shared-memory transport has too: the tensors are
fingerprinted as they are gathered, and every engine must confirm them. Leaves out the receiving end (weights_receive).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from capo_ray.engines.weights import Fingerprint, NamedTensor, SyncClient, confirm

Metadata = Callable[[], list[tuple[str, torch.dtype, tuple[int, ...]]]]
"""Names, types and shapes of what will be sent, in order, without gathering anything."""


class GatheredSource(WeightSource):
    """The weights of one sync, as vLLM's trainer engine wants them: declared first, then gathered one by one."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.weights: Iterable[NamedTensor] = ()
        self.fingerprint = Fingerprint()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._metadata()]

    def __iter__(self) -> Iterator[NamedTensor]:
        self.fingerprint = Fingerprint()
        return self.fingerprint.tap(self.weights)


class VersionedClient:
    """Adds the version to the call that ends a sync, which vLLM's trainer engine makes without one."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._client.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self._client.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.finish_weight_update(str(self.version))


class GpuSender:
    """See weights.Sender."""

    def __init__(
        self,
        kind: Literal["nccl", "ipc"],
        client: SyncClient,
        metadata: Metadata,
        *,
        num_receivers: int,
        rank: int,
        host: str,
    ) -> None:
        """`num_receivers`: GPUs of all engines together. Every rank has a client; only rank 0's is used. `host`: the
        address of this machine as the others reach it, which the address of its name need not be (127.0.1.1)."""
        self._client, self._rank = client, rank
        self._versioned = VersionedClient(client)
        self._source = GatheredSource(metadata)
        info: Any
        if kind == "nccl":
            address, port = (host, _free_port()) if rank == 0 else ("", 0)
            world = 1 + num_receivers
            info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=world, rank=rank)
        else:
            info = IPCTrainerInitInfo(rank=rank)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self._versioned, source=self._source)

    def send(self, weights: Iterable[NamedTensor], version: int) -> str:
        self._versioned.version = version
        self._source.weights = weights
        self._engine.send_weights()
        if self._rank != 0:
            return ""
        checksum = self._source.fingerprint.hexdigest()
        confirm(self._client, version, checksum)
        return checksum


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
