"""A trainer rank that leaves its memory to others between two updates goes on as if it had not, at every ZeRO stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest
from engines.trainer_ranks import MODEL, Case, Ranks, batch_of, engine_of, updated, weights_of

from capo_ray.engines.protocols import WeightsChanged
from capo_ray.engines.shelf import Shelf, give_back

pytestmark = pytest.mark.engine

LARGE = MODEL | {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4}
PARAMETERS = 4 * (384 * (384 + 2 * 192 + 384) + 3 * 384 * 1536)
KEPT = 4 * 3
"""Bytes for each parameter in float32: itself and two moments."""
LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}


def slept(rank: int, ranks: int, case: Case) -> Any:
    """Two updates with a sleep between them; the bytes of this process before and in it."""
    found, sizes = [], []
    with engine_of(case, rank, ranks) as engine:
        batch = batch_of(case, rank, ranks)
        for _ in range(2):
            engine.wake()
            found.append(engine.update(batch).metrics)
            engine.give_back()  # awake too
            sizes.append(psutil.Process().memory_full_info().uss)
            engine.sleep()
            engine.sleep()  # told twice it stays so
            sizes.append(psutil.Process().memory_full_info().uss)
        engine.wake()
        return found, weights_of(engine), sizes[:2]


CASES = {
    "without ZeRO": Case(stage=0),
    "bfloat16 without ZeRO": Case(stage=0, dtype="bfloat16"),
    "ZeRO 1": Case(stage=1),
    "an adapter": Case(stage=2, trainer={"lora": LORA}, algorithm={"kl_weight": 0.1}),
    "an adapter, with moments on the host": Case(
        stage=2, dtype="bfloat16", trainer={"lora": LORA, "offload": "optimizer"}, algorithm={"kl_weight": 0.1}
    ),
    "a reference": Case(stage=3, dtype="bfloat16", algorithm={"kl_weight": 0.1}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_after_a_sleep_is_that_of_a_rank_that_never_slept(one: Ranks, name: str) -> None:
    metrics, weights = one(updated, CASES[name], 2)
    asleep, woken, _ = one(slept, CASES[name])
    for before, after in zip(metrics, asleep, strict=True):
        assert {k: v for k, v in before.items() if k != "seconds"} == {k: v for k, v in after.items() if k != "seconds"}
    for tensor in weights:
        np.testing.assert_array_equal(weights[tensor], woken[tensor], err_msg=tensor)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_asleep_weights_and_moments_are_in_no_memory(one: Ranks, stage: int) -> None:
    _, _, (awake, asleep) = one(slept, Case(stage=stage, model=LARGE))
    assert awake - asleep > 0.9 * KEPT * PARAMETERS


def test_what_an_allocator_keeps_of_a_gpu_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    give_back()
    assert emptied == [1]


def test_what_comes_back_otherwise_than_it_went_is_not_gone_on_with() -> None:
    import torch

    shelf, tensor = Shelf(), torch.arange(1000.0)
    view = tensor[10:20]
    assert shelf.put([tensor, view, tensor]) == 4000
    assert tensor.untyped_storage().nbytes() == 0
    shelf.back()
    assert torch.equal(view, torch.arange(10.0, 20.0))
    shelf.put([tensor])
    assert shelf._file is not None
    shelf._file.seek(400)
    shelf._file.write(b"x")
    with pytest.raises(WeightsChanged, match="what the trainer put aside has checksum"):
        shelf.back()
