"""The engines' end of a weight sync, inside vLLM's worker processes: transports of vLLM that confirm what arrived.

An engine that was started for adapters gets adapters alone, over the same transports.

Each transport is vLLM's own (or `shm`, for CPU) with two additions: arriving tensors are fingerprinted before they are
loaded, and tied embeddings are bound again after vLLM's layerwise reload, which handles one of the tied parents only.
Importing this module registers them: vLLM imports it in each worker process to find `worker_extension_cls`, before it
looks the transport up. Leaves out the trainer's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferInitInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from capo_ray.engines.weights import Fingerprint, NamedTensor
from capo_ray.engines.weights_adapter import Arriving, take_up


class _Tap:
    """Stands in for the model while weights arrive: fingerprints them on their way into `load_weights`."""

    def __init__(self, model: Any, fingerprint: Fingerprint) -> None:
        self._model = model
        self._fingerprint = fingerprint

    def load_weights(self, weights: Iterable[NamedTensor]) -> Any:
        return self._model.load_weights(self._fingerprint.tap(weights))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Confirming(WeightTransferEngine):
    """What this project adds to a transport of vLLM; mixed in before it."""

    checksum = ""
    """Of what the next token is sampled from."""
    model: Any

    def start_weight_update(self) -> None:
        self._fingerprint = Fingerprint()
        self._adapter = Arriving() if self.vllm_config.lora_config is not None else None
        if self._adapter is None:
            super().start_weight_update()

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _Tap(model if self._adapter is None else self._adapter, self._fingerprint)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        """But an adapter is taken up afterwards: when an update ends, vLLM forgets those that it has."""
        if self._adapter is not None:
            return
        super().finish_weight_update()
        bind_tied_embeddings(self.model, self.model_config)
        self.checksum = self._fingerprint.hexdigest()

    def take_up_adapter(self, manager: Any) -> None:
        assert self._adapter is not None
        take_up(manager, self._adapter.tensors)
        self._adapter = None
        self.checksum = self._fingerprint.hexdigest()


def bind_tied_embeddings(model: torch.nn.Module, model_config: Any) -> None:
    """Point `lm_head` at the embedding again where the model ties them, and repack it for the CPU's matmul."""
    if not getattr(model_config.hf_text_config, "tie_word_embeddings", False):
        return
    head = getattr(model, "lm_head", None)
    inner = getattr(model, "model", None)
    embedding = getattr(inner, "embed_tokens", None)
    if head is None or embedding is None:
        return
    head.weight = embedding.weight
    head.quant_method.process_weights_after_loading(head)


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """Where the trainer wrote the weights."""

    path: str


class ShmTransport(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Reads a safetensors file in shared memory, written by a trainer on the same machine."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        with safe_open(update_info.path, framework="pt") as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


class ShmReceiver(Confirming, ShmTransport):
    pass


class NcclReceiver(Confirming, NCCLWeightTransferEngine):
    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """A group that was joined before is left first: after the restart of a worker all join a new one."""
        self.shutdown()
        super().init_transfer_engine(init_info)


class IpcReceiver(Confirming, IPCWeightTransferEngine):
    pass


class ReceiptExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`): lets the engine be asked what it holds."""

    weight_transfer_engine: Any
    model_runner: Any

    def take_up_adapter(self) -> None:
        """The one that has just arrived."""
        self.weight_transfer_engine.take_up_adapter(self.model_runner.lora_manager)

    def weight_checksum(self) -> str:
        return self.weight_transfer_engine.checksum


class SleepingExtension(ReceiptExtension):
    """Of an engine on a GPU that sleeps; on a CPU its worker says the same (cpu_worker)."""

    def held_checksum(self) -> str:
        """Of all that the model computes with, as it lies in this process's memory."""
        fingerprint = Fingerprint()
        model = self.model_runner.model
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            fingerprint.add(name, tensor)
        return fingerprint.hexdigest()


RECEIVERS = {"capo_shm": ShmReceiver, "capo_nccl": NcclReceiver, "capo_ipc": IpcReceiver}


for _name, _receiver in RECEIVERS.items():
    WeightTransferEngineFactory.register_engine(_name, _receiver)
