"""The trainer's end of the shared-memory weight sync, for trainer and engines on one machine without GPUs.

One file of safetensors under /dev/shm per sync, removed as soon as every engine has confirmed. Imports no vLLM, so that
trainer ranks on CPU start without it. Leaves out the receiving end (weights_receive).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from capo_ray.engines.weights import Fingerprint, NamedTensor, SyncClient, confirm

SHARED_MEMORY = Path("/dev/shm")


class ShmSender:
    """See weights.Sender."""

    def __init__(self, client: SyncClient | None) -> None:
        """`client` is None on every rank but 0."""
        self._client = client
        if client is not None:
            client.init_weight_transfer_engine({})

    def send(self, weights: Iterable[NamedTensor], version: int) -> str:
        if self._client is None:
            for _ in weights:  # gathering is collective
                pass
            return ""
        fingerprint = Fingerprint()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in fingerprint.tap(weights)}
        checksum = fingerprint.hexdigest()
        folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="capo_ray-weights-", dir=folder) as home:
            path = Path(home) / f"{version}.safetensors"
            save_file(tensors, path)
            self._client.start_weight_update()
            self._client.update_weights({"path": str(path)})
            self._client.finish_weight_update(str(version))
        confirm(self._client, version, checksum)
        return checksum
