"""A checkpoint goes on with other numbers of ranks and at other ZeRO stages: the state is the same to the last bit, and
the next update is that of a trainer that never stopped."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines.trainer_ranks import MODEL, Case, Ranks, batch_of, engine_of, weights_of

from capo_ray.engines import trainer_state
from capo_ray.engines.lora import learnt
from capo_ray.engines.optimizer_pieces import Piece
from capo_ray.engines.trainer_files import Saved, read_random_state, write_pieces, write_random_state
from capo_ray.files.checkpoint import TRAINER_FORMAT

pytestmark = pytest.mark.engine

ON_CPU = {"offload": "optimizer"}
TWICE = {"optimisation_passes": 2}
DECAY = {**TWICE, "weight_decay": 0.1}
"""Two groups of parameters: matrices, and norms."""
SKIPPED = {"seconds"}


def whole_state(engine: Any) -> dict[str, Any]:
    """Float32 weights and moments, put together from the pieces of all ranks; collective."""
    import torch.distributed as dist

    from capo_ray.engines.optimizer_pieces import pieces_of, replicated

    found = {}
    mine = {piece.parameter: piece for piece in pieces_of(engine._engine, learnt(engine._model))}
    for name, _, shape in engine._outgoing.kept_shapes():
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            flat, times = torch.zeros(np.prod(shape)), torch.zeros(np.prod(shape))
            if (piece := mine.get(name)) is not None:
                flat[piece.start : piece.start + piece.length] = piece.numbers[kind].float()
                times[piece.start : piece.start + piece.length] = 1
            dist.all_reduce(flat)
            dist.all_reduce(times)
            assert set(times.tolist()) == {float(engine.world_size if replicated(engine._engine) else 1)}, name
            if replicated(engine._engine):
                flat = mine[name].numbers[kind].detach().clone()
            found[f"{kind} of {name}"] = flat.view(*shape).numpy()
    return found


def told_by_deepspeed(engine: Any) -> dict[str, Any]:
    """The same by DeepSpeed's own accessors, which there are from stage 1 on, once AdamW has moved; those of 0.19 know
    the moments of one group of parameters alone."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    for name, parameter in learnt(engine._model):
        found[f"weight of {name}"] = safe_get_full_fp32_param(parameter).detach().numpy()
        for kind in ("exp_avg", "exp_avg_sq"):
            found[f"{kind} of {name}"] = safe_get_full_optimizer_state(parameter, kind).detach().numpy()
    return found


def begun(rank: int, ranks: int, case: Case, path: str, updates: int) -> Any:
    """So many updates and a checkpoint; the state of it, and the next update."""
    from capo_ray.engines.optimizer_pieces import steps_taken

    with engine_of(case, rank, ranks) as engine:
        for _ in range(updates):
            engine.update(batch_of(case, rank, ranks))
        engine.save(path)
        if updates and case.stage and not case.trainer_block(ranks).weight_decay:
            state, told = whole_state(engine), told_by_deepspeed(engine)
            for name in told:
                np.testing.assert_array_equal(state[name], told[name], err_msg=name)
        state, taken = whole_state(engine), steps_taken(engine._engine)
        return state, taken, weights_of(engine), engine.update(batch_of(case, rank, ranks)), weights_of(engine)


def gone_on(rank: int, ranks: int, case: Case, path: str, before: int) -> Any:
    """The state of an engine that has made `before` updates of its own, restored from there, and the next update."""
    from capo_ray.engines.optimizer_pieces import steps_taken

    with engine_of(case, rank, ranks) as engine:
        for _ in range(before):
            engine.update(batch_of(case, rank, ranks))
        engine.restore(path)
        state, taken = whole_state(engine), steps_taken(engine._engine)
        return state, taken, weights_of(engine), engine.update(batch_of(case, rank, ranks)), weights_of(engine)


def assert_continues(first: Any, then: Any, tolerance: float) -> None:
    (state, taken, weights, update, after), (there, taken_there, weights_there, update_there, after_there) = first, then
    assert taken == taken_there and state.keys() == there.keys() and update.version == update_there.version
    for name in state:
        np.testing.assert_array_equal(there[name], state[name], err_msg=name)
    for name in weights:
        np.testing.assert_array_equal(weights_there[name], weights[name], err_msg=name)
    far = np.concatenate([np.abs(after_there[name] - after[name]).ravel() > tolerance for name in after])
    assert far.mean() <= (0.05 if tolerance > 1e-3 else 0)
    for name in update.metrics.keys() - SKIPPED:
        assert update_there.metrics[name] == pytest.approx(update.metrics[name], rel=10 * tolerance, abs=tolerance), (
            name
        )


CHANGES = [
    (1, 2, 2, 2),
    (2, 2, 1, 2),
    (2, 1, 2, 2),
    (2, 2, 2, 3),
    (2, 3, 1, 1),
    (1, 0, 2, 1),
    (2, 3, 3, 0),
    (3, 1, 2, 3),
]
"""Ranks and ZeRO stage of the checkpoint, and of who goes on from it."""


@pytest.mark.parametrize(
    ("ranks", "stage", "ranks_then", "stage_then", "dtype", "trainer"),
    [
        *((*change, "float32", TWICE) for change in CHANGES),
        *((*change, "bfloat16", DECAY) for change in (CHANGES[1], *CHANGES[-3:])),  # to fewer, to more; all stages
    ],
)
def test_other_ranks_at_other_stages_go_on_from_a_checkpoint(
    by_count: dict[int, Ranks],
    tmp_path: Path,
    ranks: int,
    stage: int,
    ranks_then: int,
    stage_then: int,
    dtype: str,
    trainer: dict[str, Any],
) -> None:
    """The tolerance is a hundredth of the learning rate, as where one update is split in other ways. In bfloat16, where
    gradients themselves are rounded, a half of it for 19 of 20 weights: Adam moves those with hardly any gradient by
    all of the rate, to either side."""
    case, path = Case(stage=stage, dtype=dtype, budget=40, trainer=trainer), str(tmp_path / "checkpoint")
    first = by_count[ranks].each(begun, case, path, 2)
    then = by_count[ranks_then].each(gone_on, case.but(stage=stage_then), path, 0)
    for rank in then:
        assert_continues(first[0], rank, 1e-4 if dtype == "float32" else 5e-3)
    again = by_count[ranks].each(gone_on, case, path, 1)
    for one, other in zip(first, again, strict=True):
        assert_continues(one, other, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("ranks", "stage", "ranks_then", "stage_then"), [(1, 2, 2, 3), (2, 3, 3, 1), (3, 1, 1, 0)])
def test_so_does_an_adapter(
    by_count: dict[int, Ranks], tmp_path: Path, ranks: int, stage: int, ranks_then: int, stage_then: int, dtype: str
) -> None:
    trainer = {**DECAY, "lora": {"rank": 3, "alpha": 6}}
    case, path = Case(stage=stage, dtype=dtype, budget=40, trainer=trainer), str(tmp_path / "checkpoint")
    first = by_count[ranks](begun, case, path, 2)
    then = by_count[ranks_then].each(gone_on, case.but(stage=stage_then), path, 1)
    for rank in then:
        assert_continues(first, rank, 1e-4 if dtype == "float32" else 5e-3)
    assert {name.rpartition(".lora_")[2] for name in first[0]} == {"A.weight", "B.weight"}


@pytest.mark.parametrize(("stage", "stage_then"), [(2, 3), (3, 1)])
def test_an_optimizer_on_the_cpu_and_one_beside_the_weights_read_each_other(
    by_count: dict[int, Ranks], tmp_path: Path, stage: int, stage_then: int
) -> None:
    case = Case(stage=stage, dtype="bfloat16", trainer={**DECAY, **ON_CPU})
    first = by_count[2](begun, case, str(tmp_path / "one"), 1)
    plain = case.but(stage=stage_then, trainer=DECAY)
    assert_continues(first, by_count[1](gone_on, plain, str(tmp_path / "one"), 1), 5e-3)
    first = by_count[1](begun, plain, str(tmp_path / "other"), 1)
    assert_continues(first, by_count[2](gone_on, case, str(tmp_path / "other"), 0), 5e-3)


@pytest.mark.parametrize(("stage", "stage_then"), [(0, 3), (2, 0)])
def test_one_from_before_the_first_step(
    by_count: dict[int, Ranks], tmp_path: Path, stage: int, stage_then: int
) -> None:
    case = Case(stage=stage)
    first = by_count[2](begun, case, str(tmp_path / "checkpoint"), 0)
    assert first[1] == 0
    assert_continues(first, by_count[1](gone_on, case.but(stage=stage_then), str(tmp_path / "checkpoint"), 1), 1e-4)


def refused(rank: int, ranks: int, case: Case, path: str) -> str:
    with engine_of(case, rank, ranks) as engine:
        try:
            engine.restore(path)
        except ValueError as error:
            return str(error)
    return ""


def test_a_checkpoint_of_something_else_is_refused(by_count: dict[int, Ranks], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    by_count[2](begun, Case(), str(path), 1)
    smaller = {**MODEL, "num_hidden_layers": 1, "intermediate_size": 48}
    message = by_count[2](refused, Case(model=smaller), str(path))
    assert "of another model: LlamaForCausalLM with 19,872 parameters in 20 tensors there" in message
    assert "in 11 tensors here" in message and "gate_proj.weight: [64, 32] there, [48, 32] here" in message
    assert "there is no trainer checkpoint in" in by_count[1](refused, Case(), str(tmp_path / "nowhere"))
    # a rank's files, which its machine has kept to itself
    said = json.loads((path / "trainer.json").read_text())
    lost = next(name for name in said["files"] if name.startswith("pieces_00001"))
    shutil.move(path / lost, tmp_path)
    assert f"is broken: {lost} cannot be read" in by_count[1](refused, Case(), str(path))
    (path / "trainer.json").write_text(json.dumps({**said, "files": [name for name in said["files"] if name != lost]}))
    assert " numbers of weight of model." in by_count[1](refused, Case(), str(path))


# -- files of pieces, without an engine


def a_piece(name: str, start: int, *numbers: float) -> Piece:
    return Piece(
        parameter=name,
        start=start,
        numbers={kind: torch.tensor(numbers) + more for more, kind in enumerate(("weight", "exp_avg", "exp_avg_sq"))},
    )


def test_whoever_reads_takes_what_it_needs(tmp_path: Path) -> None:
    """Of pieces by two ranks, in files of two numbers and more, one piece written twice."""
    files = write_pieces(str(tmp_path), 0, [a_piece("a:b", 0, 1, 2, 3), a_piece("c", 0, 9)], part_bytes=8)
    files += write_pieces(str(tmp_path), 1, [a_piece("a:b", 3, 4, 5), a_piece("a:b", 0, 1, 2, 3)])
    assert len(files) == 7 and files == sorted(path.name for path in tmp_path.iterdir())
    saved = Saved(str(tmp_path), files)
    assert saved.read("weight", "a:b", 0, 5).tolist() == [1, 2, 3, 4, 5]
    assert saved.read("exp_avg_sq", "a:b", 2, 2).tolist() == [5, 6]
    assert saved.read("weight", "c", 0, 1).tolist() == [9]
    mine = a_piece("a:b", 1, 0, 0, 0)
    saved.fill([mine])
    assert mine.numbers["weight"].tolist() == [2, 3, 4] and mine.numbers["exp_avg"].tolist() == [3, 4, 5]
    for wrong in (("weight", "a:b", 3, 3), ("weight", "d", 0, 1)):
        with pytest.raises(ValueError, match=rf"lacks 1 numbers of weight of {wrong[1]}$"):
            saved.read(*wrong)
    saved.close()
    assert write_pieces(str(tmp_path), 2, []) == []


def test_readers_with_torch_and_without_it_know_one_format() -> None:
    assert TRAINER_FORMAT == trainer_state.FORMAT


def test_a_description_that_is_cut_off_is_a_broken_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text('{"step": 3, ')
    with pytest.raises(ValueError, match=r"is broken: trainer\.json is no JSON"):
        trainer_state.read_state(str(tmp_path))


def test_nothing_in_a_checkpoint_is_code(tmp_path: Path) -> None:
    """It may come from anybody."""
    evil = tmp_path / "pieces_00000_000.safetensors"
    evil.write_bytes(pickle.dumps({"weight": Path(tmp_path)}))
    with pytest.raises(ValueError, match=r"is broken: pieces_00000_000\.safetensors cannot be read"):
        Saved(str(tmp_path), [evil.name])


def test_random_generators_go_on_whoever_there_is(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    try:
        torch.manual_seed(7)
        write_random_state(str(tmp_path), 0)
        expected = torch.rand(3)
        for rank in (0, 4):
            torch.manual_seed(rank)
            read_random_state(str(tmp_path), rank, ranks=1)
            assert torch.equal(torch.rand(3), expected)
    finally:
        torch.set_rng_state(before)
