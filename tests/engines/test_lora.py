"""A policy that learns by an adapter: what moves and what does not, at every ZeRO stage; its reference; its files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.trainer_ranks import MODEL, Case, Ranks, batch_of, engine_of, updated, weights_of

from capo_ray.config.lora import Lora
from capo_ray.engines import lora

pytestmark = pytest.mark.engine

RANK, ALPHA = 3, 7
ADAPTED = {"optimisation_passes": 2, "lora": {"rank": RANK, "alpha": ALPHA}}
"""A rank that is none of vLLM's, and a scale that rounds."""
KL = {"kl_weight": 0.05, "importance_cap": 1.1}
TOKENIZER = str(Path(__file__).parents[2] / "capo_ray" / "assets" / "tiny_policy")


def wrote(rank: int, ranks: int, case: Case, path: str) -> None:
    with engine_of(case, rank, ranks) as engine:
        engine.save_pretrained(path)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, one: Ranks, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("base") / "model")
    model = {**MODEL, "tie_word_embeddings": request.param}
    one(wrote, Case(stage=0, model=model, tokenizer=TOKENIZER), path)
    return path


def case_of(base: str, **given: Any) -> Case:
    return Case(
        **{
            "model": base,
            "tokenizer": TOKENIZER,
            "budget": 20,
            "per_update": 5,
            "trainer": ADAPTED,
            "algorithm": KL,
            **given,
        }
    )


def looked_into(rank: int, ranks: int, case: Case) -> Any:
    """Beside what an update leaves: the base's own weights after it, numbers in AdamW's states, and log-probabilities
    of the reference and of the model as it began."""
    import torch

    with engine_of(case, rank, ranks) as engine:
        batch = engine._collate(case.sequences[:3], 1.0)
        with torch.no_grad():
            began = engine._engine(batch, 0.7)[0]
        metrics = [engine.update(batch_of(case, rank, ranks)).metrics for _ in range(2)]
        with torch.no_grad():
            reference, now = engine._reference(batch, 0.7)[0], engine._engine(batch, 0.7)[0]
        own = {}
        for name, parameter, _ in lora.plain(engine._model):
            with engine._outgoing._gathered([parameter]):
                own[name] = parameter.detach().float().numpy().copy()
        states = engine._engine.basic_optimizer.state.values()
        moments = sum(tensor.numel() for state in states for tensor in state.values() if tensor.numel() > 1)
        scored = [tensor.float().numpy() for tensor in (began, reference, now)]
        return metrics, weights_of(engine), own, moments, scored


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_adapter_alone_learns_and_without_it_the_model_is_its_reference(
    one: Ranks, two: Ranks, base: str, stage: int
) -> None:
    from safetensors.numpy import load_file

    metrics, weights, own, moments, (began, reference, now) = two(looked_into, case_of(base, stage=stage))
    there = load_file(f"{base}/model.safetensors")
    assert there.keys() == own.keys() == weights.keys()
    for name, numbers in there.items():
        np.testing.assert_array_equal(own[name], numbers, err_msg=name)
        changes = name.endswith("proj.weight")
        assert (np.abs(weights[name] - numbers).max() > 1e-4) == changes, name
    of_adapter = sum(RANK * sum(numbers.shape) for name, numbers in there.items() if name.endswith("proj.weight"))
    assert moments == pytest.approx(2 * of_adapter / (2 if stage else 1), rel=0.05)  # shares are filled up
    np.testing.assert_array_equal(reference, began)
    assert np.abs(now - began).max() > 1e-2
    assert metrics[0]["kl_reference"] < metrics[1]["kl_reference"] and metrics[1]["grad_norm"] > 0
    whole = one(updated, case_of(base, stage=0, budget=1000), 2)
    for mine, theirs in zip(metrics, whole[0], strict=True):
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
    for name, numbers in whole[1].items():
        np.testing.assert_allclose(weights[name], numbers, atol=1e-4, err_msg=name)


def filed(rank: int, ranks: int, case: Case, folder: str) -> Any:
    """Checkpoint and plain folder after two updates, and the weights of a sync of either kind."""
    from capo_ray.engines.outgoing import Outgoing

    with engine_of(case, rank, ranks) as engine:
        for _ in range(2):
            engine.update(batch_of(case, rank, ranks))
        engine.save(f"{folder}/checkpoint")
        engine.save_pretrained(f"{folder}/adapter")
        alone = Outgoing(engine._model, engine._trainer, sends="adapter", folder=None, tokenizer=None)
        assert [(n, t.dtype, tuple(t.shape)) for n, t in alone.sent()] == alone.sent_shapes()
        assert [(n, t.dtype, tuple(t.shape)) for n, t in engine.weights()] == engine.weight_shapes()
        return weights_of(engine), {name: tensor.float().numpy() for name, tensor in alone.sent()}


@pytest.mark.parametrize(("stage", "dtype"), [(2, "float32"), (3, "bfloat16")])
def test_files_hold_the_adapter_and_merged_they_are_the_weights_of_a_sync(
    two: Ranks, base: str, tmp_path: Path, dtype: str, stage: int
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from capo_ray.engines.exported import write_merged, write_policy

    synced, alone = two(filed, case_of(base, stage=stage, dtype=dtype), str(tmp_path))
    for name in ("exported", "merged"):
        (tmp_path / name).mkdir()
    write_policy(tmp_path / "checkpoint", tmp_path / "exported")
    files = [load_file(tmp_path / name / lora.WEIGHTS) for name in ("adapter", "exported")]
    assert files[0].keys() == files[1].keys() == alone.keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in alone)
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoint").glob("pieces*"))
    assert size < 3 * 4 * sum(numbers.size for numbers in alone.values()) + 50_000  # names, and padding of headers
    write_merged(tmp_path / "exported", tmp_path / "merged")
    assert not {path.name for path in (tmp_path / "merged").iterdir()} & set(lora.FILES)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=getattr(torch, dtype))
    assert {name for name, _ in merged.named_parameters()} == synced.keys()
    for name, parameter in merged.named_parameters():
        np.testing.assert_array_equal(parameter.detach().float().numpy(), synced[name], err_msg=name)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    ids = torch.tensor([case_of(base).sequences[0].token_ids])
    with torch.no_grad():
        gap = (by_peft(ids).logits - merged.float()(ids).logits).abs().max()
    assert gap < (1e-5 if dtype == "float32" else 0.1)


def refused(rank: int, ranks: int, case: Case, path: str) -> str:
    try:
        with engine_of(case, rank, ranks) as engine:
            engine.restore(path)
    except ValueError as error:
        return str(error)
    return ""


def test_another_adapter_and_other_weights_beneath_it_are_refused(one: Ranks, base: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from capo_ray.engines.exported import write_merged

    def but(**given: Any) -> Case:
        return case_of(base, trainer={**ADAPTED, "lora": {**ADAPTED["lora"], **given}})

    one(filed, case_of(base), str(tmp_path))
    path = str(tmp_path / "checkpoint")
    was = "LoRA of rank 3 and alpha 7 on all linear layers there"
    assert f"{was}, LoRA of rank 3 and alpha 6" in one(refused, but(alpha=6), path)
    assert f"{was}, LoRA of rank 3 and alpha 7 on q_proj here" in one(refused, but(targets=("q_proj",)), path)
    assert f"{was}, all weights learn here" in one(refused, case_of(base, trainer={}), path)
    assert "has no linear layer 'query' beside its head; it has down_proj, " in one(
        refused, but(targets=("q_proj", "query")), path
    )
    assert one(refused, but(dropout=0.0), path) == ""
    weights = load_file(f"{base}/model.safetensors")
    weights["model.norm.weight"] += 1e-3
    (tmp_path / "other").mkdir()
    for file in Path(base).iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "other" / "model.safetensors")
    other = case_of(str(tmp_path / "other"))
    assert "is of an adapter to other weights than those of the model here" in one(refused, other, path)
    beneath = tmp_path / "adapter" / lora.BASE
    said = json.loads(beneath.read_text())
    for folder, message in ((tmp_path / "other", "which has other weights now"), (tmp_path / "gone", "is not there")):
        beneath.write_text(json.dumps({**said, "folder": str(folder)}))
        with pytest.raises(ValueError, match=message):
            write_merged(tmp_path / "adapter", tmp_path)
    beneath.unlink()
    with pytest.raises(ValueError, match="nothing says of which weights it is"):
        write_merged(tmp_path / "adapter", tmp_path)


def held_out_after_restore(rank: int, ranks: int, case: Case, path: str) -> Any:
    """The loss of a held-out pass before a checkpoint, and twice of an engine that begins with it."""
    with engine_of(case, rank, ranks) as engine:
        batch = batch_of(case, rank, ranks)
        engine.update(batch)
        engine.save(path)
        before = engine.evaluate(batch)["nll"]
    with engine_of(case, rank, ranks) as engine:
        engine.restore(path)
        return [before, *(engine.evaluate(batch)["nll"] for _ in range(2))]


def test_nothing_is_dropped_out_before_the_first_update_either(one: Ranks, base: str, tmp_path: Path) -> None:
    trainer = {"lora": {"rank": 8, "dropout": 0.5}}
    case = replace(case_of(base), supervised=True, per_update=None, budget=1000, trainer=trainer)
    before, *after = one(held_out_after_restore, case, str(tmp_path / "checkpoint"))
    assert after == [before, before]


def dropped(rank: int, ranks: int, case: Case) -> Any:
    """The loss of a held-out pass twice, and that of one update, after one that made the adapter more than nothing."""
    with engine_of(case, rank, ranks) as engine:
        batch = batch_of(case, rank, ranks)
        engine.update(batch)
        held_out = [engine.evaluate(batch)["nll"] for _ in range(2)]
        return held_out, engine.update(batch).metrics["nll"]


def test_what_is_dropped_out_is_so_while_it_learns_alone(one: Ranks, base: str) -> None:
    case = replace(case_of(base), supervised=True, per_update=None, budget=1000)

    def share(dropout: float) -> Case:
        return replace(case, trainer={"lora": {"rank": 8, "dropout": dropout}})

    (first, second), learnt = one(dropped, share(0.5))
    assert first == second and abs(learnt - first) > 1e-4
    (first, second), learnt = one(dropped, share(0.0))
    assert first == second == pytest.approx(learnt, abs=1e-6)
    (_, plain), (_, again) = (
        one(updated, replace(share(0.5), trainer={**share(0.5).trainer, "gradient_checkpointing": on}), 2)
        for on in (False, True)
    )
    for name, numbers in plain.items():
        np.testing.assert_allclose(again[name], numbers, atol=1e-5, err_msg=name)


def test_targets_by_their_names() -> None:
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    assert lora.targets_of(Model(), None) == ["q_proj"]
    with pytest.raises(ValueError, match="has no linear layer 'head' beside its head"):
        lora.targets_of(Model(), ("head",))
    assert Lora(targets=("b", "a", "b")).shape()["targets"] == ["a", "b"]
