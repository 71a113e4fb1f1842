"""What the check does on a card, as far as it can be seen without one; pretended is the card alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capo_ray.config.blocks import Trainer
from capo_ray.config.compose import compose
from capo_ray.gpu_check import syncing, training, world
from capo_ray.gpu_check.notes import Cannot, Notes
from capo_ray.gpu_check.shapes import MODELS, flops_per_token, shape_of
from capo_ray.planning.plan import plan_for
from capo_ray.types import Update

GIB = 1 << 30
TRAINER = Trainer(learning_rate=1e-6, zero_stage=2, tokens_per_micro_batch=8192, gradient_checkpointing=True)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path, "gpu")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """79 GiB, of which 19 are held by torch at its peak and 2 by the context and NCCL."""
    pretended = {
        "get_device_name": lambda index: "NVIDIA H100 80GB HBM3",
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "mem_get_info": lambda: (67 * GIB, 79 * GIB),
        "memory_reserved": lambda: 10 * GIB,
        "max_memory_reserved": lambda: 19 * GIB,
        "max_memory_allocated": lambda: 17 * GIB,
    }
    for name, function in pretended.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, function)


def engine(most: int, *, finite: bool = True) -> Any:
    """A trainer rank that has memory for so many tokens."""

    def update(batch: Any) -> Update:
        ((sequence,),) = batch.micro_batches[0]
        if len(sequence.prompt_ids) + len(sequence.token_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return Update(metrics={"nonfinite_steps": float(not finite)}, version=1)

    return SimpleNamespace(update=update)


def test_a_step_on_a_card_has_its_rate_mfu_and_memory_beside_the_plans(
    notes: Notes, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000))
    monkeypatch.setattr(training.time, "perf_counter", lambda: 0.25 * next(clock))
    shape = shape_of(MODELS["1B"])
    row = training._row(notes, engine(8192), shape, TRAINER, 2048)
    assert (row["seconds"], row["tokens_per_second"]) == (0.25, 8192.0)
    assert row["mfu"] == pytest.approx(8192 * flops_per_token(shape, 2048) / 989e12, abs=1e-4)
    assert (row["peak_tensors_gib"], row["peak_gib"], row["error"]) == (17.0, 21.0, "")
    assert 10 < row["planned_gib"] < 40


def test_a_step_that_the_card_cannot_hold_is_a_row_too(notes: Notes, card: None) -> None:
    row = training._row(notes, engine(4096), shape_of(MODELS["3B"]), TRAINER, 8192)
    assert row["error"] == "CUDA out of memory. Tried to allocate 9 GiB."
    assert row["peak_gib"] == 21.0 and row["planned_gib"] > 0 and "tokens_per_second" not in row


def test_a_card_that_makes_no_numbers_does_not_train(notes: Notes, card: None) -> None:
    row = training._row(notes, engine(4096, finite=False), shape_of(MODELS["3B"]), TRAINER, 2048)
    assert row["error"] == "the gradient is not finite, and nothing was trained" and "mfu" not in row


@pytest.mark.parametrize(
    ("kind", "visible", "engine_sees", "handles"),
    [("ipc", None, None, "1"), ("ipc", "3", "3", "1"), ("nccl", None, "1", None), ("nccl", "4,6,7", "6", None)],
)
def test_what_the_engines_process_is_started_with(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, kind: Any, visible: str | None, engine_sees: str, handles: str
) -> None:
    """`nccl` has the second card; `ipc` may be handed memory. The trainer sees what was there before."""
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_ALLOW_INSECURE_SERIALIZATION"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen: dict[str, Any] = {}

    def start(*given: Any, transport: str, **more: Any) -> None:
        seen.update(os.environ, transport=transport)

    monkeypatch.setattr(syncing, "open_rollout", start)
    asyncio.run(syncing._open(notes, "folder", "bfloat16", kind))
    assert seen["transport"] == f"capo_{kind}"
    assert seen.get("CUDA_VISIBLE_DEVICES") == engine_sees
    assert seen.get("VLLM_ALLOW_INSECURE_SERIALIZATION") == handles
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize(("cards", "said"), [(0, "here is none"), (1, "here is one")])
def test_nccl_wants_two_cards(notes: Notes, monkeypatch: pytest.MonkeyPatch, cards: int, said: str) -> None:
    monkeypatch.setattr(syncing, "gpu_sizes", lambda: [80.0] * cards)
    with pytest.raises(Cannot, match=f"nccl wants two cards, and {said}"):
        syncing._transport(notes, "nccl")
    assert syncing._transport(notes, "ipc") == "ipc"
    monkeypatch.setattr(syncing, "gpu_sizes", lambda: [80.0, 80.0])
    assert syncing._transport(notes, "nccl") == "nccl"


def test_a_sync_that_brings_other_weights_than_the_trainers_is_a_failure() -> None:
    syncing._check(0.7, 0.01, 1, "bfloat16")
    with pytest.raises(RuntimeError, match=r"after sync 2 engine and trainer differ by 0\.1 .* 0\.05 is the most"):
        syncing._check(0.7, 0.1, 2, "bfloat16")
    with pytest.raises(RuntimeError, match=r"differed by 0\.06 alone, so that being near after it proves nothing"):
        syncing._check(0.06, 0.01, 1, "bfloat16")
    with pytest.raises(RuntimeError, match="after sync 1"):
        syncing._check(0.7, float("nan"), 1, "bfloat16")


@pytest.mark.parametrize(
    "critic",
    [(*world._SERVED, "critic.endpoints=[http://127.0.0.1:8000/v1]"), ("critic=truth", "critic.canaries=null")],
)
def test_the_tiny_world_asks_for_one_card(critic: tuple[str, ...]) -> None:
    config = compose([*world._COMMON, *world._ON_ONE_CARD, *critic])
    plan = plan_for(config, gpu_gib=24.0)
    assert plan.needs("GPU") == 1
    assert plan.faults == ()
    assert (config.cluster.weight_transfer, config.cluster.device) == ("ipc", "gpu")
    assert config.rollout.gpu_memory_share + world._SERVER_SHARE < 0.7  # the trainer has the rest


def test_in_turns_it_asks_for_one_card_too() -> None:
    config = compose([*world._COMMON, *world._IN_TURNS, *world._CARD_IN_TURNS])
    plan = plan_for(config, gpu_gib=24.0)
    assert (plan.needs("GPU"), plan.faults) == (1, ())
    assert config.critic is not None and config.critic.kind == "vllm" and config.cluster.lora_sync == "adapter"
