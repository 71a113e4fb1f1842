"""One style of arguments for every program, and values that mean nothing refused in one line."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from capo_ray import export, grade, launch, plan, replay
from capo_ray.config.fault import keys
from capo_ray.config.run import Config
from capo_ray.credit import __main__ as credit
from capo_ray.critic_bench import __main__ as critic_bench
from capo_ray.data import __main__ as data
from capo_ray.doctor import __main__ as doctor
from capo_ray.evaluate import __main__ as evaluate
from capo_ray.faults import __main__ as faults
from capo_ray.gpu_check import __main__ as gpu_check
from capo_ray.lab import __main__ as lab
from capo_ray.models.find import ASSETS
from capo_ray.revote import __main__ as revote
from capo_ray.sft import __main__ as sft
from capo_ray.smollm2 import __main__ as smollm2
from capo_ray.tasks.arithmetic import measure, models
from capo_ray.view import __main__ as view

POLICY = str(ASSETS / "tiny_policy")


PROGRAMS: dict[str, tuple[ModuleType, list[str], str]] = {
    "credit": (credit, [f"tokenizer={POLICY}"], "vote"),
    "critic_bench": (critic_bench, ["data=arithmetic", "out=bench"], "count"),
    "data": (data, ["check"], "against"),
    "doctor": (doctor, [], "out"),
    "evaluate": (evaluate, ["model=m", "suite=math"], "runs"),
    "export": (export, ["run"], "step"),
    "faults": (faults, ["out=o", "report=only"], "minutes"),
    "gpu_check": (gpu_check, ["device=cpu"], "minutes"),
    "grade": (grade, [], "timeout"),
    "lab": (lab, ["run=quick", "report=only"], "arms"),
    "launch": (launch, ["+experiment=tiny_cpu", "dry_run=true"], "steps"),
    "measure": (measure, [], "count"),
    "models": (models, [], "scale"),
    "plan": (plan, ["+experiment=tiny_cpu"], "profile"),
    "replay": (replay, ["run"], "device"),
    "revote": (revote, ["run"], "vote"),
    "sft": (sft, ["model=m", "data=d", "out=o"], "seed"),
    "smollm2": (smollm2, ["out=o"], "wheel"),
    "view": (view, ["run"], "port"),
}
"""Program -> arguments that could start it, and a key of its own."""


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(request.param)


@pytest.mark.parametrize("asked", ["--help", "-h", "help"])
def test_help_says_what_it_does_and_lists_each_setting(
    program: str, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, _, key = PROGRAMS[program]
    assert main.main([asked]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m capo_ray.") and "\n  python -m capo_ray." in said
    assert "as key=value" in said and len(re.findall(rf"^  {key}=", said, re.MULTILINE)) == 1
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{misspelt}=1", "{misspelt}: no such key; did you mean {key}?"),
        ("qqqqqq=1", "qqqqqq: no such key; "),
        ("--{key}=1", "--{key}=1: arguments are key=value, as in {key}=1"),
        ("--{key} 1", "--{key}: arguments are key=value, as in {key}=1"),
        ("{key}=", "{key}: must "),
        ("stray stray", "stray: arguments are key=value"),
    ],
)
def test_every_program_refuses_alike(
    program: str, given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, asked, key = PROGRAMS[program]
    names = {"key": key, "misspelt": f"{key[:-2]}{key[-1]}{key[-2]}"}
    assert main.main([*asked, *given.format(**names).split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message.format(**names)}") and said.count("\n") == 1, said
    assert list(Path().iterdir()) == []


def test_a_run_directory_is_given_with_its_key_or_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    for given in ("a=b", "run_dir=a=b"):
        assert view.arguments(["port=8091", given]).run_dir == Path("a=b")
    assert view.arguments(["run", "port=8091", "port=8092"]).port == 8092  # as a run's keys: the last one


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (grade.main, ["timeout=nan"], "timeout: must be a finite number, got 'nan'"),
        (grade.main, ["processes=0"], "processes: must be at least 1, got '0'"),
        (grade.main, ["processes=9999999999999999999999"], "processes: must be at most 1024, got"),
        (view.main, ["run", "port=99999"], "port: must be at most 65535, got '99999'"),
        (credit.main, [f"tokenizer={POLICY}", "vote=os:system"], "os:system: "),
        (credit.main, [f"tokenizer={POLICY}", "vote=os:getcwd"], "os:getcwd: "),
        (credit.main, [f"tokenizer={POLICY}", "outcome_weight=1e308"], "outcome_weight: must be a number from 0 to"),
        (credit.main, [f"tokenizer={POLICY}", "min_valid_critiques=-5"], "min_valid_critiques: must be a whole number"),
        (credit.main, ["vote=union"], "tokenizer: must be given; pass tokenizer=..."),
        (credit.main, ["tokenizer=/dev/null"], "/dev/null"),
    ],
)
def test_what_means_nothing(
    main: Callable[[list[str]], int], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_a_replay_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "replies.jsonl").write_bytes(b"\xff\xfe\n")
    assert critic_bench.main([f"replay={tmp_path}"]) == 2
    assert "replies.jsonl, line 1: no reply of a critic (UnicodeDecodeError: " in capsys.readouterr().err


def test_graded_lines_are_json_whatever_the_line_was(tmp_path: Path) -> None:
    deep = "[" * 985 + "]" * 985
    lines = [
        '{"gold": "7", "answer": "7", "x": NaN}',
        '{"gold": NaN, "answer": "7"}',
        '{"gold": "7", "answer": 1e999, "id": Infinity}',
        f'{{"gold": "7", "answer": "7", "x": {deep}}}',
        '{"gold": "7", "answer": "7", "y": 1}',
    ]
    with (tmp_path / "graded").open("w") as out:
        asyncio.run(grade.grade(io.BytesIO("\n".join(lines).encode()), out, processes=1, timeout_s=5))

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "graded").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, None, None, rows[3]["correct"], True]
    assert rows[0]["x"] is None and rows[1]["reason"] == "field 'gold' must be a text or a number, is NaN"


def test_a_group_nested_too_deeply_loses_no_other() -> None:
    response = '{"text": "1", "outcome": 1, "critiques": ["<incorrect_steps></incorrect_steps>"]}'
    lines = [
        '{"id": ' + "[" * 988 + "]" * 988 + f', "responses": [{response}]}}',
        f'{{"id": NaN, "responses": [{response}]}}',
        f'{{"id": 1e999, "responses": [{response}]}}',
        f'{{"id": "a", "responses": [{response}]}}',
    ]
    command = [sys.executable, "-m", "capo_ray.credit", f"tokenizer={POLICY}"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()][-2:] == ["line 2", "line 3"]
    assert json.loads(done.stdout.splitlines()[-1])["id"] == "a"


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help"]) == 0
    said = capsys.readouterr().out
    for key in keys(Config):
        assert f"  {key}=" in said or f"  {key}." in said, key
    assert "  trainer.learning_rate=(required)" in said and "  trainer.zero_stage=2 " in said
    assert max(map(len, said.splitlines())) <= 120
    assert sft.main(["--help"]) == 0
    assert "  learning_rate=1e-05 " in capsys.readouterr().out
