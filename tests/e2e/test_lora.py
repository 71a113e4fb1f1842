"""A run whose policy learns by an adapter: it alone is synced, checkpointed and exported, and what is beneath it judges
on the engine that samples; then other ranks go on, in no turns."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import QUICK, UNEVALUATED, Ran, run, start

from capo_ray.credit.critique import Reference
from capo_ray.credit.template import shipped
from capo_ray.tasks.arithmetic.flaws import Rates, write
from capo_ray.tasks.arithmetic.lessons import Conversation, policy_lessons
from capo_ray.tasks.arithmetic.world import judge, make_problem

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

STEPS = ("algorithm.kl_weight=0.01", "steps=3", "checkpoint_every=1", "trainer.learning_rate=3e-3")
JUDGES = (
    *("critic=base", "critic.template=brief", "critic.critiques=3", "critic.max_critique_tokens=16"),
    *("critic.reference=none", "critic.temperature=0.5", "critic.window=384", "cluster.sharing=turns"),
)


def lessons(count: int) -> Iterator[Conversation]:
    """Critiques in as few words as can be, and now and then a solution, so that these are not forgotten."""
    for index, lesson in enumerate(policy_lessons(7, count)):
        problem = make_problem(7, index)
        response = write(problem, random.Random(index), Rates())
        wrong = [str(number) for number, step in enumerate(judge(problem, response)) if not step.right]
        asked = shipped("brief").messages(problem.question, Reference("none"), response.split("\n\n"))
        answer = f"<incorrect_steps>{', '.join(wrong)}</incorrect_steps>"
        yield lesson if index % 4 == 0 else [*asked, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy, taught to answer as a critic too: it keeps the form and seldom finds what is wrong."""
    folder = tmp_path_factory.mktemp("base")
    with (folder / "lessons.jsonl").open("w") as file:
        file.writelines(json.dumps({"messages": lesson}) + "\n" for lesson in lessons(1800))
    said = start(
        "sft",
        *("model=asset:tiny_policy", "model.dtype=float32", "data=lessons.jsonl", "out=base", "device=cpu"),
        *("steps=110", "sequences_per_update=16", "tokens_per_micro_batch=4096", "learning_rate=2e-3"),
        cwd=folder,
    )
    assert said.returncode == 0, said.stdout
    return folder / "base"


def settings(base: Path, *, rank: int = 5) -> tuple[str, ...]:
    return (*QUICK, *STEPS, f"policy.path={base}", f"trainer.lora.rank={rank}")


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("lora") / "run", *settings(base), *JUDGES, "trainer.ranks=1")


def test_engines_sample_from_the_adapter_that_the_trainer_has(adapted: Ran) -> None:
    assert adapted.code == 0, adapted.output
    for step in adapted.steps:
        assert 0 <= step["trainer/sampler_gap_max"] < 1e-4 and step["trainer/grad_norm"] > 0
    first, *_, last = (step["trainer/kl_reference"] for step in adapted.steps)
    assert first < last  # against the model without it
    policy = adapted.run_dir / "policy"
    assert (policy / "adapter_model.safetensors").stat().st_size < 200_000
    assert not (policy / "model.safetensors").exists()
    refused = start("evaluate", f"model={policy}", "suite=arithmetic", cwd=adapted.run_dir)
    assert refused.returncode == 2 and f"{policy} is an adapter and no model" in refused.stdout


def test_the_base_beneath_it_judges_and_its_votes_are_paid(adapted: Ran) -> None:
    assert [step["step"] for step in adapted.steps] == [1, 2, 3]
    for step in adapted.steps:
        assert step["critic/valid_share"] > 0.5 and step["turns/wake_s"] > 0
        assert step["actor/critic-0/tokens_per_s"] > 0 and step["actor/rollout-0/tokens_per_s"] > 0
    for sample in adapted.samples:
        assert [critique["critic"] for critique in sample["critiques"]] == ["rollout-0"] * 3
        outcome, wrong = 2.0 if sample["answer"] == "correct" else 0.0, sample["wrong_steps"] or ()
        for number, step in enumerate(sample["steps"]):
            first, end = step["tokens"]
            assert set(sample["token_rewards"][first:end]) <= {outcome - (number in wrong)}
    assert any(sample["wrong_steps"] for sample in adapted.samples)


def resumed(adapted: Ran, base: Path, *more: str, rank: int = 5) -> Any:
    given = (*settings(base, rank=rank), *more, f"run_dir={adapted.run_dir}", "resume=true")
    return start("launch", *given, cwd=adapted.run_dir)


def test_another_adapter_is_refused_before_anything_starts(adapted: Ran, base: Path) -> None:
    said = resumed(adapted, base, *JUDGES, rank=6)
    assert said.returncode == 2
    assert "error: trainer.lora: the checkpoint" in said.stdout and said.stdout.count("\n") == 1
    assert "LoRA of rank 5 and alpha 32 on all linear layers there, LoRA of rank 6" in said.stdout


@pytest.mark.long
def test_other_ranks_go_on_and_a_checkpoint_is_exported_both_ways(tmp_path: Path) -> None:
    """By an engine of its own GPUs that takes the adapter, and then by one that takes whole weights."""
    import torch
    from transformers import AutoModelForCausalLM

    learns = ("trainer.lora.rank=5", "trainer.learning_rate=3e-3", "checkpoint_every=1")
    alone = (*UNEVALUATED, "critic=null", "algorithm=grpo", *learns)
    went = run(tmp_path / "run", *alone, "trainer.ranks=1", "steps=2")
    assert went.code == 0, went.output
    assert went.steps[-1]["trainer/sampler_gap_max"] < 1e-4
    other = ("trainer.ranks=2", "cluster.lora_sync=merged", "trainer.zero_stage=3", "resume=true")
    went = run(went.run_dir, *alone, *other, "steps=4")
    assert went.code == 0, went.output
    assert [step["step"] for step in went.steps] == [1, 2, 3, 4]
    assert all(step["trainer/sampler_gap_max"] < 1e-4 for step in went.steps)
    for merge, name in (("false", "adapter_model.safetensors"), ("true", "model.safetensors")):
        said = start("export", str(went.run_dir), "step=4", f"merge={merge}", f"out=out-{merge}", cwd=went.run_dir)
        assert said.returncode == 0, said.stdout
        assert (went.run_dir / f"out-{merge}" / name).is_file()
    said = start("export", "policy", "merge=true", "out=again", cwd=went.run_dir)
    assert said.returncode == 0, said.stdout
    said = start("evaluate", "model=again", "suite=arithmetic", "count=4", "runs=1", cwd=went.run_dir)
    assert said.returncode == 0, said.stdout
    one, again = (
        AutoModelForCausalLM.from_pretrained(went.run_dir / folder, dtype=torch.float32).state_dict()
        for folder in ("out-true", "again")
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert Path(went.run_dir / "again" / "tokenizer.json").is_file()
