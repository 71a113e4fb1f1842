"""Weight sync over `nccl`: vLLM's own trainer and worker ends, its rendezvous and its packing, gloo in NCCL's place."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import DistStoreError

from capo_ray.engines.protocols import Stage, WeightReceipt
from capo_ray.engines.receivers import ReceiverFailed, Receivers, WeightMismatch
from tests.engines.gloo_for_nccl import GlooCommunicator, install

pytestmark = pytest.mark.engine

torch.manual_seed(0)
WEIGHTS = [
    *((f"model.layers.{layer}.weight", torch.randn(300, 700 + layer).to(torch.bfloat16)) for layer in range(9)),
    ("model.norm.weight", torch.randn(700).to(torch.bfloat16)),
]
BUFFER = 1_000_000
"""Bytes: the weights take several."""


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Any) -> set[str]:
        self.got |= {name: tensor.clone() for name, tensor in weights}
        return set(self.got)


class Worker:
    """A rollout worker: real receivers, one per GPU, in threads of this process."""

    def __init__(self, name: str, gpus: int, pool: ThreadPoolExecutor, *, adapted: bool = False) -> None:
        from capo_ray.engines.weights_receive import NcclReceiver

        self.name = name
        self._pool = pool
        self._adapted = adapted
        self.failing: dict[Stage, Callable[[], None]] = {}
        self.gpus = [
            NcclReceiver(
                SimpleNamespace(),  # type: ignore[arg-type]
                SimpleNamespace(
                    parallel_config=SimpleNamespace(data_parallel_index=0, world_size=gpus, rank=rank),
                    model_config=SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=False)),
                    lora_config=SimpleNamespace() if adapted else None,
                ),  # type: ignore[arg-type]
                torch.device("cpu"),
                Model(),
            )
            for rank in range(gpus)
        ]

    def ask(self, stage: Stage, given: dict[str, Any]) -> "Future[WeightReceipt | None]":
        return self._pool.submit(self._take, stage, given)

    def _take(self, stage: Stage, given: dict[str, Any]) -> WeightReceipt | None:
        if stage in self.failing:
            self.failing[stage]()
        calls: dict[Stage, Callable[[Any], Any]] = {
            "greet": lambda gpu: None,
            "connect": lambda gpu: gpu.init_transfer_engine(gpu.parse_init_info(given)),
            "start": lambda gpu: gpu.start_weight_update(),
            "update": lambda gpu: gpu.update_weights(given),
            "finish": self._finish,
        }
        for done in [self._pool.submit(calls[stage], gpu) for gpu in self.gpus]:
            done.result()
        if stage != "finish":
            return None
        checksums = "+".join(sorted({gpu.checksum for gpu in self.gpus}))
        return WeightReceipt(engine=self.name, version=given["version"], checksum=checksums)

    def _finish(self, gpu: Any) -> None:
        gpu.finish_weight_update()
        if self._adapted:
            gpu.take_up_adapter(gpu.model)


class World:
    """`workers` workers of `gpus` GPUs each, and rank 0 of a trainer."""

    def __init__(self, workers: int, gpus: int, *, adapted: bool = False, **waits: float) -> None:
        self.pool = ThreadPoolExecutor(64)
        names = [f"rollout-{number}" for number in range(workers)]
        self.workers = [Worker(name, gpus, self.pool, adapted=adapted) for name in names]
        self.receivers = Receivers({worker.name: worker.ask for worker in self.workers}, gpus_each=gpus, **waits)

    @property
    def gpus(self) -> list[Any]:
        return [gpu for worker in self.workers for gpu in worker.gpus]

    def connect(self) -> Any:
        from capo_ray.engines.weights_gpu import GpuSender

        def metadata() -> list[Any]:
            return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in WEIGHTS]

        return GpuSender("nccl", self.receivers, metadata, rank=0, host="127.0.0.1", buffer_bytes=BUFFER)


@pytest.fixture(autouse=True)
def gloo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import vllm.model_executor.model_loader.reload as reload

    install(monkeypatch.setattr)
    monkeypatch.setattr(GlooCommunicator, "made", [])
    monkeypatch.setattr(reload, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(reload, "finalize_layerwise_reload", lambda model, config: None)
    yield


@pytest.mark.parametrize(("workers", "gpus"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_every_gpu_of_every_worker_has_a_rank_of_its_own(workers: int, gpus: int) -> None:
    world = World(workers, gpus)
    world.connect()
    assert sorted(one.rank for one in GlooCommunicator.made) == list(range(1 + workers * gpus))
    assert {one.world_size for one in GlooCommunicator.made} == {1 + workers * gpus}


@pytest.mark.parametrize("adapted", [False, True], ids=["weights", "adapter"])
def test_a_packed_sync_reaches_every_gpu_and_one_flipped_bit_is_noticed(
    monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    """An adapter is no weight of the model: it is handed over when the transfer has ended."""
    from capo_ray.engines import weights_receive

    monkeypatch.setattr(weights_receive, "take_up", lambda manager, tensors: manager.load_weights(tensors.items()))
    world = World(2, 2, adapted=adapted)
    sender = world.connect()
    assert len(sender.send(iter(WEIGHTS), 7)) == 16
    assert all(torch.equal(gpu.model.got[name], tensor) for gpu in world.gpus for name, tensor in WEIGHTS)

    honest = GlooCommunicator.broadcast

    def one_bit_flipped(self: GlooCommunicator, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        honest(self, tensor, src)
        if self.rank == 3:
            tensor[5] ^= 1

    monkeypatch.setattr(GlooCommunicator, "broadcast", one_bit_flipped)
    with pytest.raises(WeightMismatch, match=r"rollout-1 confirms version 8 with checksum \w+\+\w+, but version 8"):
        sender.send(iter(WEIGHTS), 8)


def test_other_ranks_gather_and_do_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from capo_ray.engines.weights import Fingerprint
    from capo_ray.engines.weights_gpu import GpuSender

    monkeypatch.delattr(Fingerprint, "add")
    gathered = iter(WEIGHTS)
    assert GpuSender("nccl", None, list, rank=1, host="127.0.0.1").send(gathered, 1) == ""
    assert next(gathered, None) is None and GlooCommunicator.made == []


def test_a_second_connection_releases_the_first_on_both_sides() -> None:
    world = World(2, 1)
    world.connect().close()  # as the trainer's actor does before it opens another
    sender = world.connect()
    first, second = GlooCommunicator.made[:3], GlooCommunicator.made[3:]
    assert [one.destroyed for one in (*first, *second)] == [True] * 3 + [False] * 3
    assert sender.send(iter(WEIGHTS), 2)


def test_a_worker_that_is_not_there_is_named_while_the_others_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(3, 1, patience_s=1.0, word_s=0.4)
    missing = threading.Event()
    monkeypatch.setattr(world.workers[1], "_take", lambda *_: missing.wait(30))
    with pytest.raises(TimeoutError, match=r"sync: rollout-1 did not answer greet within 1 s"):
        world.connect()
    missing.set()
    assert "waiting for rollout-1 to answer greet" in caplog.text


def test_a_rendezvous_that_fails_closes_its_socket_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second time it may be the number of any file that was opened since: a test failed to read one so."""
    import vllm.distributed.utils as of_vllm

    import capo_ray.engines.weights_gpu  # noqa: F401

    listening, closed = socket.create_server(("127.0.0.1", 0)), []
    number, port = listening.fileno(), listening.getsockname()[1]
    monkeypatch.setattr(of_vllm, "socket", SimpleNamespace(close=closed.append, socket=socket.socket))
    with pytest.raises(DistStoreError, match="Timed out"):
        of_vllm.StatelessProcessGroup.create("127.0.0.1", port, 0, 2, store_timeout=1, listen_socket=listening)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert closed == []


class Died(RuntimeError):
    pass


@pytest.mark.parametrize("broken", [False, True], ids=["broadcast hangs", "broadcast breaks first"])
def test_a_worker_that_dies_while_weights_move_is_named(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """NCCL waits for a peer that is gone; other transports may say before Ray does that a connection broke."""
    world = World(2, 1, grace_s=5.0)
    sender = world.connect()
    moving, never = threading.Event(), threading.Event()

    def broadcast(self: GlooCommunicator, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        moving.set()
        if broken and self.rank == 0:
            raise RuntimeError("Connection closed by peer")
        never.wait(30)

    def dies() -> None:
        moving.wait(30)
        if broken:
            never.wait(0.3)
        raise Died("the actor died")

    monkeypatch.setattr(GlooCommunicator, "broadcast", broadcast)
    world.workers[1].failing["update"] = dies
    begun = time.monotonic()
    with pytest.raises(ReceiverFailed, match="rollout-1 failed in update: the actor died") as raised:
        sender.send(iter(WEIGHTS), 1)
    assert isinstance(raised.value.cause, Died) and time.monotonic() - begun < 10
    never.set()
