"""`dry_run=true` looks at what a run would, says what it could not look at, and ends with the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capo_ray.launch import main

TINY = ["+experiment=tiny_cpu", "data=math", "data.max_prompt_tokens=64", "dry_run=true"]
PAPER = ["+experiment=llama1b_intersection", "dry_run=true"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def verdict(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and the lines of the verdict."""
    before = sorted(Path.cwd().rglob("*"))
    code = main(list(arguments))
    lines = capsys.readouterr().out.splitlines()
    assert sorted(Path.cwd().rglob("*")) == before
    start = max(n for n, line in enumerate(lines) if line.startswith("this machine: "))
    assert lines[-1].startswith("verdict: ")
    return code, lines[start + 1 :]


def write(rows: list[dict[str, str]]) -> None:
    Path("x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_sound_run_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    write([{"problem": f"{n}+1?", "solution": f"\\boxed{{{n}}}"} for n in range(8)])
    assert verdict(capsys, *TINY, "data.path=x.jsonl") == (
        0,
        ["verdict: this run can start on this machine; everything was looked at"],
    )


def test_epochs_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    write([{"problem": f"{n}+1?", "solution": f"\\boxed{{{n}}}"} for n in range(8)])
    assert main([*TINY, "data.path=x.jsonl", "steps=5"]) == 0
    assert (
        "  epochs                                       10.0  (80 prompts of 8 problems)\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("data.path=none.jsonl", "data.path: there is no file none.jsonl; pass data.path="),
        (
            "data.path=x.jsonl",
            "x.jsonl, line 1: no field 'problem'; there are final, task: set data.question_field",
        ),
        ("data.path=good.jsonl policy.path=/nowhere", "policy.path: '/nowhere' is no folder here; name a folder or"),
        ("data.path=good.jsonl critic.model.path=/nowhere", "critic.model.path: '/nowhere' is no folder here; name"),
        ("data.path=good.jsonl data.max_prompt_tokens=1", "1 of 1 prompts are longer than data.max_prompt_tokens 1"),
        ("data.path=good.jsonl critic.canaries.source=nothing", "critic.canaries.source: "),
        ("data.path=good.jsonl run_dir=. ", "the run directory "),
        ("data.path=good.jsonl run_dir=good.jsonl/run", "the run directory "),
        ("data.path=good.jsonl run_dir=none resume=true", ""),
        ("data.path=good.jsonl resume=true", "resume: name the run to resume with run_dir=DIR"),
        ("data.path=good.jsonl rollout.workers=999 cluster.cpus=2", "100.3 cores (here: 2)"),
        (
            "data.path=good.jsonl rollout.max_response_tokens=460 trainer.tokens_per_micro_batch=2048",
            "the policy at ",
        ),
    ],
)
def test_what_cannot_start_is_exit_code_2(capsys: pytest.CaptureFixture[str], given: str, fault: str) -> None:
    write([{"task": "a", "final": "1"}])
    Path("good.jsonl").write_text(json.dumps({"problem": "1+1?", "solution": "\\boxed{2}"}) + "\n")
    code, lines = verdict(capsys, *TINY, *given.split())
    faults = [line for line in lines if line.startswith("fault: ")]
    assert code == 2 and lines[-1].startswith("verdict: this run cannot start (")
    assert any(line.startswith(f"fault: {fault}") for line in faults)


def test_a_plan_for_elsewhere_says_what_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = verdict(capsys, *PAPER, "critic=http", "critic.endpoints=[http://h/v1]", "critic.served_model=m")
    assert code == 0
    assert lines == [
        "not looked at: the critic's server http://h/v1",
        "not looked at: policy.path meta-llama/Llama-3.2-1B-Instruct: of the Hugging Face hub, and not in its cache "
        "here",
        "not looked at: data.evaluation.path HuggingFaceH4/MATH-500: of the Hugging Face hub",
        "not looked at: data.path DigitalLearningGmbH/MATH-lighteval: of the Hugging Face hub",
        "verdict: this run can start where there are 4 such GPUs; as far as it could be looked at from here",
    ]


def test_its_own_numbers_and_files_are_looked_at_anyway(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = verdict(capsys, *PAPER, "trainer.ranks=1", "model@policy=qwen2_5_7b", "trainer.zero_stage=0")
    assert code == 2 and any(line.startswith("fault: trainer: a rank needs ") for line in lines)
    code, lines = verdict(capsys, *PAPER, "data.path=none.jsonl")
    assert code == 2 and any(line.startswith("fault: data.path: there is no file none.jsonl") for line in lines)


def test_a_folder_that_may_not_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # nothing keeps root from writing
    code, lines = verdict(capsys, "+experiment=tiny_cpu", "dry_run=true")
    assert code == 2
    assert (
        lines[0] == f"fault: the run directory {Path.cwd()}/runs cannot be written: {Path.cwd()} may not be written; "
        "pass another run_dir"
    )


def test_what_is_not_installed_is_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where the run would be elsewhere."""
    monkeypatch.setattr("capo_ray.program.find_spec", lambda name: None if name == "ray" else name)
    code, lines = verdict(capsys, "+experiment=tiny_cpu", "dry_run=true")
    assert code == 2 and lines[0].startswith("fault: this needs ray, which the core install (pip install .) does not ")
    assert verdict(capsys, *PAPER)[0] == 0
