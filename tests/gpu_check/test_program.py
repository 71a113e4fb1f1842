"""The program as a user types it: what it takes, what it refuses, and that it goes on after a part that failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.fault import ConfigError
from capo_ray.gpu_check import __main__ as program
from capo_ray.gpu_check.shapes import MODELS, flops_per_token, shape_of
from capo_ray.gpu_check.training import peak_flops
from capo_ray.gpu_check.watching import Outcome, Part

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["device=tpu"], "device: must be one of cpu, gpu, got 'tpu'"),
        (["parts=here,ipcc"], "parts: there is no 'ipcc'; there are here, train_0.5B"),
        (["minutes=soon"], "minutes: must be a number, got 'soon'"),
        (["minutes=nan"], "minutes: must be a finite number, got 'nan'"),
        (["size=1B"], "size: no such key; there are device, parts, out, minutes"),
        (["out=."], "exists and is not an empty folder; name another"),
    ],
)
def test_what_it_does_not_take(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        program.options_of(arguments)
    assert said in str(error.value)


def test_what_it_takes(tmp_path: Path) -> None:
    options = program.options_of(["device=cpu", "parts=ipc,here,ipc", f"out={tmp_path}/new", "minutes=2.5"])
    assert (options.device, [part.name for part in options.parts]) == ("cpu", ["ipc", "here"])
    assert (options.out, options.minutes) == (tmp_path / "new", 2.5)
    usual = program.options_of([])
    assert (usual.device, usual.parts, usual.minutes) == ("gpu", program.PARTS, 15.0)


def test_without_a_gpu_it_says_so_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program.main([f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert "no GPU here (there is no nvidia-smi); docs/gpu.md has what to install. device=cpu tries" in said
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_a_part_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = Part(name="hangs", what="hangs", module="made_parts", function="hangs", limit_s=60.0)
    monkeypatch.setattr(program, "PARTS", (made,))
    monkeypatch.setattr("capo_ray.gpu_check.watching._TERM_S", 0.2)
    monkeypatch.setattr("capo_ray.gpu_check.watching.EVERY_S", 0.0)
    out = tmp_path / "out"

    def interrupt(line: str) -> None:
        if "waiting for NCCL" in line:
            raise KeyboardInterrupt

    options, outcomes = program.options_of(["device=cpu", f"out={out}"]), list[Outcome]()
    with pytest.raises(KeyboardInterrupt):
        program.check(options, outcomes, interrupt)
    (outcome,) = outcomes
    assert (outcome.state, outcome.said) == ("interrupted", "it was at: waiting for NCCL")
    assert outcome.figures["rate"] == 3.0


def test_it_goes_on_after_a_failure_and_stops_when_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = tuple(
        Part(name=name, what=f"`{name}`", module="made_parts", function=name, limit_s=60.0)
        for name in ("fails", "is_killed", "fine", "hangs", "cannot")
    )
    monkeypatch.setattr(program, "PARTS", made)
    monkeypatch.setattr("capo_ray.gpu_check.watching._TERM_S", 0.2)
    assert program.main(["device=cpu", f"out={tmp_path / 'out'}", "minutes=0.2"]) == 1
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    states = {part["name"]: (part["state"], part["said"]) for part in report["parts"]}
    assert [states[name][0] for name in ("fails", "is_killed", "fine")] == ["failed", "killed", "ok"]
    assert states["hangs"][0] == "timeout" and states["hangs"][1].endswith("waiting for NCCL")
    assert states["cannot"] == ("not reached", "0.2 minutes were over; it alone: parts=cannot")
    assert report["parts"][2]["figures"]["rate"] == 1.0
    assert "fails: fails, " in printed and "  is_killed: killed, by SIGKILL; it was at: allocating\n" in printed
    assert printed.rstrip().splitlines()[-1].startswith("NO GPU WAS MEASURED")
    assert "NO GPU WAS MEASURED" in (tmp_path / "out" / "report.md").read_text()


def test_the_usual_time_is_most_of_what_the_parts_of_one_card_may_take_together() -> None:
    """Their usual time is a half to a third of their limits; `nccl` is skipped on one card."""
    assert sum(part.limit_s for part in program.PARTS if part.name != "nccl") < 1.9 * 60 * program.MINUTES["gpu"]


@pytest.mark.parametrize(("name", "millions"), [("0.5B", 494), ("1B", 1236), ("3B", 3213)])
def test_shapes_have_as_many_parameters_as_the_models_that_they_are_of(name: str, millions: int) -> None:
    assert shape_of(MODELS[name]).parameters == pytest.approx(millions * 1e6, rel=0.001)


def test_arithmetic_of_a_token() -> None:
    shape = shape_of(MODELS["1B"])
    assert flops_per_token(shape, 8192) == pytest.approx(6 * 1.2358e9 + 6 * 16 * 2048 * 8192, rel=1e-3)
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("Quadro") is None


def checked(out: Path, *arguments: str, path: Sequence[str] = ()) -> tuple[int, dict[str, Any], str]:
    """Exit code, figures of each part, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "capo_ray.gpu_check", "device=cpu", f"out={out}", *arguments],
        cwd=out.parent,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    report = json.loads((out / "report.json").read_text())
    return done.returncode, {part["name"]: part for part in report["parts"]}, done.stdout + done.stderr


@pytest.mark.engine
def test_the_trainer_is_measured_on_a_real_rank(tmp_path: Path) -> None:
    code, parts, printed = checked(tmp_path / "out", "parts=train_3B")
    assert code == 0, printed
    figures = parts["train_3B"]["figures"]
    assert figures["model"] == "tiny" and figures["parameters"] == shape_of(MODELS["tiny"]).parameters
    assert [step["tokens"] for step in figures["steps"]] == [64, 128]
    for step in figures["steps"]:
        assert step["tokens_per_second"] == pytest.approx(step["tokens"] / step["seconds"], rel=0.05)
        assert step["mfu"] is None and step["error"] == ""
        assert 0.1 < step["peak_gib"] < 4 and step["planned_gib"] > 0
    assert "NO GPU WAS MEASURED" in printed


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.e2e
@pytest.mark.timeout(1600)
def test_the_other_parts_on_a_cpu(tmp_path: Path) -> None:
    """Real DeepSpeed, vLLM, Ray and weight transfer, through the code that a card will run. A trainer step, the same
    for each model here, has a test above."""
    others = [part.name for part in program.PARTS if not part.name.startswith("train_")]
    code, parts, printed = checked(tmp_path / "out", f"parts={','.join(others)}")
    assert code == 0, printed
    assert {name: part["state"] for name, part in parts.items()} == {
        name: "skipped" if name == "nccl" else "ok" for name in others
    }
    here, sync, engine = (parts[name]["figures"] for name in ("here", "ipc", "engine"))
    assert here["cannot"] == {} and here["matmul_tflops"] > 0 and here["gpus"] == []
    assert sync["transport"] == "shm" and sync["checksums"][0] != sync["checksums"][1]
    assert sync["gap_before"] > 0.01 > 1e-4 > max(sync["gap_1"], sync["gap_2"])
    assert engine["sampled_tokens_per_second"] > 0 and engine["prompt_tokens"] == 8 * 256
    for weights in ("kept", "dropped"):
        turns = parts["turns"]["figures"]
        assert 0.9 < turns[f"{weights}_freed_gib"] < turns["awake_gib"]
    assert "weights kept: " in printed and "weights dropped: " in printed
    world, resumed = parts["world"]["figures"], parts["resume"]["figures"]
    in_turns = parts["in_turns"]["figures"]
    assert in_turns["steps"] == [1, 2] and in_turns["gap"] < 1e-4 and in_turns["wake_seconds"] > 0
    assert "s of them to wake up; log-probabilities apart by " in printed
    assert world["steps"] == [1, 2] and world["valid_critiques"] > 0.5 and world["gap"] < 1e-4
    assert resumed["killed_after"] < "step_000003" and resumed["steps"] == [1, 2, 3]
    assert parts["nccl"]["said"] == "nccl wants two cards, and here is none"
    assert printed.rstrip().splitlines()[-1].startswith("NO GPU WAS MEASURED")
    assert not list((tmp_path / "out").rglob("scratch"))
