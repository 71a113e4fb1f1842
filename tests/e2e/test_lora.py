"""A run whose policy learns by an adapter: it alone is synced, checkpointed and exported; then other ranks go on."""

from pathlib import Path
from typing import Any

import pytest
from running import QUICK, Ran, run, start

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

LORA = (
    *("critic=null", "algorithm=grpo", "algorithm.kl_weight=0.01", "steps=2", "checkpoint_every=1"),
    *("trainer.lora.rank=5", "trainer.learning_rate=3e-3"),
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("lora") / "run", *QUICK, *LORA, "trainer.ranks=1")


def test_engines_sample_from_the_adapter_that_the_trainer_has(adapted: Ran) -> None:
    assert adapted.code == 0, adapted.output
    for step in adapted.steps:
        assert 0 <= step["trainer/sampler_gap_max"] < 1e-4 and step["trainer/grad_norm"] > 0
    first, second = (step["trainer/kl_reference"] for step in adapted.steps)
    assert first < second  # against the model without it
    policy = adapted.run_dir / "policy"
    assert (policy / "adapter_model.safetensors").stat().st_size < 200_000
    assert not (policy / "model.safetensors").exists()
    refused = start("evaluate", f"model={policy}", "suite=arithmetic", cwd=adapted.run_dir)
    assert refused.returncode == 2 and f"{policy} is an adapter and no model" in refused.stdout


def resumed(adapted: Ran, *more: str) -> Any:
    return start("launch", *QUICK, *LORA, *more, f"run_dir={adapted.run_dir}", "resume=true", cwd=adapted.run_dir)


def test_another_adapter_is_refused_before_anything_starts(adapted: Ran) -> None:
    said = resumed(adapted, "trainer.lora.rank=6")
    assert said.returncode == 2
    assert "error: trainer.lora: the checkpoint" in said.stdout and said.stdout.count("\n") == 1
    assert "LoRA of rank 5 and alpha 32 on all linear layers there, LoRA of rank 6" in said.stdout


@pytest.mark.long
def test_other_ranks_go_on_with_whole_weights_and_a_checkpoint_is_exported_both_ways(adapted: Ran) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    other = ("cluster.lora_sync=merged", "trainer.ranks=2", "trainer.zero_stage=3")
    went = run(adapted.run_dir, *QUICK, *LORA, *other, "steps=3", "resume=true")
    assert went.code == 0, went.output
    assert [step["step"] for step in went.steps] == [1, 2, 3]
    assert went.steps[-1]["trainer/sampler_gap_max"] < 1e-4
    for merge, name in (("false", "adapter_model.safetensors"), ("true", "model.safetensors")):
        said = start("export", str(went.run_dir), "step=3", f"merge={merge}", f"out=out-{merge}", cwd=went.run_dir)
        assert said.returncode == 0, said.stdout
        assert (went.run_dir / f"out-{merge}" / name).is_file()
    said = start("export", "policy", "merge=true", "out=again", cwd=went.run_dir)
    assert said.returncode == 0, said.stdout
    one, again = (
        AutoModelForCausalLM.from_pretrained(went.run_dir / folder, dtype=torch.float32).state_dict()
        for folder in ("out-true", "again")
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert Path(went.run_dir / "again" / "tokenizer.json").is_file()
