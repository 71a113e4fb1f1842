"""Weight sync over `ipc`: vLLM's own ends and packing; pretended are the card and the handles of its memory."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from capo_ray.cluster.placement import environment
from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.engines.protocols import Stage, WeightReceipt
from capo_ray.engines.receivers import Receivers, WeightMismatch
from capo_ray.planning.bundles import Role

pytestmark = pytest.mark.engine

HANDLE = (torch.Tensor, torch.Size([2, 2]), (2, 1), 0, torch.UntypedStorage, torch.uint8, 0, b"x" * 64, 16, 0, b"r", 0)
torch.manual_seed(0)
WEIGHTS = [
    ("model.embed_tokens.weight", torch.randn(900, 64).to(torch.bfloat16)),
    *((f"model.layers.{layer}.weight", torch.randn(64, 64 + layer).to(torch.bfloat16)) for layer in range(9)),
]
BUFFER = 20_000
"""Bytes: less than the embedding takes."""


def config_of(sharing: str) -> Config:
    changed = compose(["+experiment=llama1b_grpo"])
    return changed.model_copy(
        update={"cluster": changed.cluster.model_copy(update={"device": "gpu", "sharing": sharing})}
    )


def test_handles_reach_vllms_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `collective_rpc` sends them; without the variable vLLM refuses."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    sent = {"names": ["a"], "ipc_handles": {"GPU-0": HANDLE}}
    assert environment(config_of("apart"), "rollout") == environment(config_of("pairs"), "trainer") == {}
    with pytest.raises(TypeError, match="VLLM_ALLOW_INSECURE_SERIALIZATION"):
        MsgpackEncoder().encode(sent)
    for name, value in environment(config_of("pairs"), "rollout").items():
        monkeypatch.setenv(name, value)
    (_, got) = MsgpackDecoder().decode(MsgpackEncoder().encode(sent))["ipc_handles"].popitem()
    assert got == [list(part) if isinstance(part, tuple) else part for part in HANDLE]  # tuples travel as lists


@pytest.mark.parametrize("role", ["rollout", "critic", "trainer"])
def test_in_turns_what_is_put_aside_takes_no_more_of_the_host_than_it_has(
    role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch knows the word: it is among those that its library splits settings into. What was set beside it stays."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert environment(config_of("turns"), role)["PYTORCH_ALLOC_CONF"] == "pinned_max_round_threshold_mb:1"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    both = "pinned_max_round_threshold_mb:1,max_split_size_mb:64"
    assert environment(config_of("turns"), role)["PYTORCH_ALLOC_CONF"] == both
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    assert b"pinned_max_round_threshold_mb" in library.read_bytes()


def test_the_plan_knows_the_size_of_a_piece() -> None:
    from capo_ray.engines.weights_gpu import BUFFER_BYTES
    from capo_ray.planning.memory import SYNC_BYTES

    assert SYNC_BYTES == BUFFER_BYTES


class OnCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {})}
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Any) -> set[str]:
        self.got |= dict(weights)
        return set(self.got)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The buffers that were made on it."""
    import vllm.distributed.weight_transfer.packed_tensor as packed
    import vllm.model_executor.model_loader.reload as reload

    buffers: list[torch.Tensor] = []

    def shared(buffer: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
        buffers.append(buffer)
        return None, (*HANDLE[:9], len(buffers) - 1)

    monkeypatch.setattr(packed, "reduce_tensor", shared)
    monkeypatch.setattr(torch.multiprocessing.reductions, "rebuild_cuda_tensor", lambda *handle: buffers[handle[9]])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *device: None)
    monkeypatch.setattr(reload, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(reload, "finalize_layerwise_reload", lambda model, config: None)
    with OnCpu():
        yield buffers


@pytest.mark.parametrize("adapted", [False, True], ids=["weights", "adapter"])
def test_a_tensor_larger_than_the_buffer_passes_and_one_flipped_bit_is_noticed(
    card: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    from capo_ray.engines import weights_receive
    from capo_ray.engines.weights_gpu import GpuSender
    from capo_ray.engines.weights_receive import IpcReceiver

    monkeypatch.setattr(weights_receive, "take_up", lambda manager, tensors: manager.load_weights(tensors.items()))
    model, pieces, flip = Model(), list[list[str]](), list[int]()
    engine = IpcReceiver(
        SimpleNamespace(),  # type: ignore[arg-type]
        SimpleNamespace(
            parallel_config=SimpleNamespace(),
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=False)),
            lora_config=SimpleNamespace() if adapted else None,
        ),  # type: ignore[arg-type]
        torch.device("cuda", 0),
        model,
    )

    def take(stage: Stage, given: dict[str, Any]) -> WeightReceipt | None:
        if stage == "connect":
            engine.init_transfer_engine(engine.parse_init_info(given))
        elif stage == "start":
            engine.start_weight_update()
        elif stage == "update":
            pieces.append(given["names"])
            for byte in flip:
                card[-1][byte] ^= 1
            engine.update_weights(given)
        elif stage == "finish":
            engine.finish_weight_update()
            if adapted:
                engine.take_up_adapter(model)
            return WeightReceipt(engine="rollout-0", version=given["version"], checksum=engine.checksum)
        return None

    def ask(stage: Stage, given: dict[str, Any]) -> "Future[WeightReceipt | None]":
        answer: Future[WeightReceipt | None] = Future()
        try:
            answer.set_result(take(stage, given))
        except Exception as error:
            answer.set_exception(error)
        return answer

    def metadata() -> list[Any]:
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in WEIGHTS]

    receivers = Receivers({"rollout-0": ask}, gpus_each=1, patience_s=20)
    receivers.during = lambda work, what: work()  # type: ignore[method-assign,assignment]
    sender = GpuSender("ipc", receivers, metadata, rank=0, host="127.0.0.1", buffer_bytes=BUFFER)
    assert len(sender.send(iter(WEIGHTS), 1)) == 16
    assert 1 < len(pieces) < len(WEIGHTS) and pieces[0] == ["model.embed_tokens.weight"]
    assert all(torch.equal(model.got[name], tensor) for name, tensor in WEIGHTS)

    flip.append(5)
    with pytest.raises(WeightMismatch, match="rollout-0 confirms version 2 with"):
        sender.send(iter(WEIGHTS), 2)
