"""One style of arguments for every program, and values that mean nothing refused in one line."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from capo_ray import grade, launch
from capo_ray.config.fault import keys
from capo_ray.config.run import Config
from capo_ray.credit import __main__ as credit
from capo_ray.critic_bench import __main__ as critic_bench
from capo_ray.models import ASSETS
from capo_ray.sft import __main__ as sft
from capo_ray.view import __main__ as view

POLICY = str(ASSETS / "tiny_policy")


def test_keys_and_flags_are_the_same() -> None:
    plain = credit.arguments([f"tokenizer={POLICY}", "vote=majority", "outcome_weight=4", "min_valid_critiques=2"])
    flags = ["--tokenizer", POLICY, "--vote", "majority", "--outcome-weight", "4", "--min-valid-critiques=2"]
    assert vars(plain) == vars(credit.arguments(flags))
    assert view.arguments(["a=b/run", "port=8091"]).run_dir == Path("a=b/run")
    assert view.arguments(["run", "port=8091"]).port == 8091


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (grade.main, ["timeout=nan"], "argument --timeout: must be a number from 0.001 to 1e+06, got 'nan'"),
        (grade.main, ["--timeout", "inf"], "argument --timeout: must be a number from 0.001 to 1e+06, got 'inf'"),
        (grade.main, ["processes=0"], "argument --processes: must be a whole number from 1 to 1024, got '0'"),
        (grade.main, ["processes=9999999999999999999999"], "argument --processes: must be a whole number from 1"),
        (grade.main, ["speed=3"], "unrecognized arguments: speed=3"),
        (view.main, ["run", "port=99999"], "argument --port: must be a whole number from 1 to 65535, got '99999'"),
        (view.main, ["run", "--port", "-1"], "argument --port: "),
        (credit.main, [f"tokenizer={POLICY}", "vote=os:system"], "os:system: "),
        (credit.main, [f"tokenizer={POLICY}", "vote=os:getcwd"], "os:getcwd: "),
        (credit.main, [f"tokenizer={POLICY}", "outcome_weight=1e308"], "argument --outcome-weight: must be a number"),
        (credit.main, [f"tokenizer={POLICY}", "min_valid_critiques=-5"], "argument --min-valid-critiques: must be a"),
        (credit.main, ["tokenizer=/dev/null"], "/dev/null"),
    ],
)
def test_what_means_nothing(
    main: object, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)  # type: ignore[operator]
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1


def test_a_replay_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "replies.jsonl").write_bytes(b"\xff\xfe\n")
    assert critic_bench.main([f"replay={tmp_path}"]) == 2
    assert "replies.jsonl, line 1: no reply of a critic (UnicodeDecodeError: " in capsys.readouterr().err


def test_graded_lines_are_json_whatever_the_line_was() -> None:
    deep = "[" * 985 + "]" * 985
    lines = [
        '{"gold": "7", "answer": "7", "x": NaN}',
        '{"gold": NaN, "answer": "7"}',
        '{"gold": "7", "answer": 1e999, "id": Infinity}',
        f'{{"gold": "7", "answer": "7", "x": {deep}}}',
        '{"gold": "7", "answer": "7", "y": 1}',
    ]
    out = io.StringIO()
    asyncio.run(grade.grade(io.BytesIO("\n".join(lines).encode()), out, processes=1, timeout_s=5))

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in out.getvalue().splitlines()]
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
