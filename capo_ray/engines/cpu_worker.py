"""vLLM's worker on a CPU: its groups share one loop, and its sleep gives memory back, where vLLM's own does nothing.

What a GPU's allocator unmaps is here the storage of tensors, cut to nothing. Of what a GPU copies to the host, weights
that are needed again as they were, the host is the model's folder: they are read once more. An engine for adapters
keeps its weights, which no sync brings and which cannot be read again beneath an adapter. Leaves out when an engine
sleeps, and the order of its wakes (sleeper).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from vllm.model_executor.model_loader import get_model_loader
from vllm.v1.worker.cpu_worker import CPUWorker

from capo_ray.engines.gloo import one_loop
from capo_ray.engines.shelf import give_back
from capo_ray.engines.weights import Fingerprint, NamedTensor
from capo_ray.engines.weights_receive import bind_tied_embeddings

Emptied = Sequence[tuple[torch.Tensor, int]]
"""Tensors, with the bytes that the storage of each had."""


class OneLoopCpuWorker(CPUWorker):
    def init_device(self) -> None:
        with one_loop():
            super().init_device()


class SleepingCpuWorker(OneLoopCpuWorker):
    """Sleeps and wakes as vLLM's worker on a GPU does, by the same tags."""

    _weights: Emptied = ()
    _kv_cache: Emptied = ()
    _read_again = False
    _checksum = ""

    def sleep(self, level: int = 1) -> None:
        if self.vllm_config.lora_config is None and not self._weights:
            model = self.model_runner.model
            for layer in model.modules():
                if hasattr(layer, "cpu_linear"):  # holds a copy of the weights, packed for the CPU's matmul
                    layer.cpu_linear = None
            self._weights = _emptied(parameter.data for parameter in model.parameters())
        self._read_again = level == 1
        if not self._kv_cache:
            self._kv_cache = _emptied(self.model_runner.kv_caches)
        give_back()

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        if tags is None or "weights" in tags:
            _fill(self._weights)
            if self._weights and self._read_again:
                self._read()
            self._weights = ()
        if tags is None or "kv_cache" in tags:
            _fill(self._kv_cache)
            self._kv_cache = ()

    def held_checksum(self) -> str:
        """Of the weights as they were read from the model's folder last. A packed copy shows nothing itself."""
        if not self._checksum:
            fingerprint = Fingerprint()
            for _ in fingerprint.tap(self._of_folder()):
                pass
            self._checksum = fingerprint.hexdigest()
        return self._checksum

    def _of_folder(self) -> Iterator[NamedTensor]:
        loader: Any = get_model_loader(self.vllm_config.load_config)
        made: Iterator[NamedTensor] = loader.get_all_weights(self.model_config, self.model_runner.model)
        return made

    def _read(self) -> None:
        fingerprint = Fingerprint()
        self.model_runner.reload_weights(weights_iterator=fingerprint.tap(self._of_folder()))
        bind_tied_embeddings(self.model_runner.model, self.model_config)
        self._checksum = fingerprint.hexdigest()


def _emptied(tensors: Iterable[torch.Tensor]) -> Emptied:
    """Cut the storage of each to nothing. Whoever holds a tensor finds it again when it is filled."""
    made = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.resizable() and storage.nbytes():  # not one that others emptied, since tied weights share it
            made.append((tensor, storage.nbytes()))
            storage.resize_(0)
    return made


def _fill(emptied: Emptied) -> None:
    """With zeros."""
    for tensor, size in emptied:
        tensor.untyped_storage().resize_(size)
        torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).zero_()
