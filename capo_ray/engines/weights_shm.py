"""The trainer's end of the shared-memory weight sync, for trainer and engines on one machine without GPUs.

One file of safetensors under /dev/shm per sync, removed as soon as every engine has confirmed. Imports no vLLM, so that
trainer ranks on CPU start without it. Leaves out the receiving end (weights_receive).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from capo_ray.engines.receivers import Receivers
from capo_ray.engines.weights import Fingerprint, NamedTensor

SHARED_MEMORY = Path("/dev/shm")


class ShmSender:
    """See weights.Sender."""

    def __init__(self, receivers: Receivers | None) -> None:
        """`receivers` is None on every rank but 0."""
        self._receivers = receivers
        if receivers is not None:
            receivers.init_weight_transfer_engine({})

    def send(self, weights: Iterable[NamedTensor], version: int) -> str:
        if self._receivers is None:
            for _ in weights:  # gathering is collective
                pass
            return ""
        fingerprint = Fingerprint()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in fingerprint.tap(weights)}
        self._receivers.version = version
        folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="capo_ray-weights-", dir=folder) as home:
            path = Path(home) / f"{version}.safetensors"
            save_file(tensors, path)
            self._receivers.start_weight_update()
            self._receivers.update_weights({"path": str(path)})
            self._receivers.finish_weight_update()
        return self._receivers.confirm(fingerprint.hexdigest())

    def close(self) -> None:
        pass
