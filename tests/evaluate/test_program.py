"""The program: bad input ends with one line, and the tiny policy is evaluated, stopped and gone on with, for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openai_server import chat, serving_in_thread

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.credit.critique import render_reply, unwrap
from capo_ray.evaluate.__main__ import main
from capo_ray.evaluate.response import Response
from capo_ray.evaluate.settings import configuration, options_of
from capo_ray.evaluate.suites import Question, find_suite, questions
from capo_ray.models.find import ModelFiles
from capo_ray.training.run import write_config
from capo_ray.training.settings import rollout_settings

ROOT = Path(__file__).resolve().parents[2]
TINY = "model=asset:tiny_policy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("suite=paper", "model: must be given"),
        (f"{TINY}", "suite: must be given"),
        (f"{TINY} suite=nope", "suite: there is no 'nope'"),
        (f"{TINY} suite=none.jsonl", "none: suite.none.data.path: there is no file none.jsonl"),
        (f"{TINY} suite=arithmetic k=x", "k: must be a whole number, got 'x'"),
        (f"{TINY} suite=arithmetic count=0", "count: must be at least 1, got '0'"),
        (f"{TINY} suite=arithmetic runs=0", "runs, k: both are 0, so there is nothing to ask"),
        (f"{TINY} suite=arithmetic colour", "colour: arguments are key=value"),
        (f"{TINY} suite=arithmetic colour=1", "colour: no such key"),
        (f"{TINY} suite=arithmetic critic=nope", "critic: there is no 'nope' in conf/critic; there are"),
        (f"{TINY} suite=arithmetic cluster=gpu", "cluster: this machine has no GPU"),
        (
            f"{TINY} suite=arithmetic rollout.max_response_tokens=500",
            "the model's window of 512; lower it",
        ),
        (f"{TINY} suite=own.jsonl critic=truth", "critic: this one knows the tiny world alone, and the suite has own"),
        ("model=asset:nope suite=arithmetic", "policy.path: no model 'asset:nope' ships with this package"),
        ("model=./nope suite=arithmetic", "policy.path: './nope' is no folder here"),
        ("replay=none", "replay: none holds no evaluation: there is no evaluation.json"),
        ("replay=none k=2", "replay: it takes no other key than `out`"),
    ],
)
def test_bad_input(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "own.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.jsonl"]


def test_without_arguments_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and main(["--help"]) == 0
    assert "model=FOLDER_OR_ID suite=SUITE_OR_FILE" in capsys.readouterr().out


def test_a_cluster_that_is_joined_has_the_gpus() -> None:
    asked = ["model=Qwen/Qwen2.5-7B-Instruct", "suite=math"]
    assert configuration(options_of([*asked, "cluster.address=auto"])).cluster.device == "gpu"
    assert configuration(options_of([*asked, "cluster=cpu", "cluster.address=auto"])).cluster.device == "cpu"


def test_a_run_on_a_cluster_does_not_send_its_evaluations_there(tmp_path: Path) -> None:
    write_config(compose(["+experiment=tiny_cpu", "cluster.address=10.0.0.1:6379"]), tmp_path)
    asked = [f"model={tmp_path / 'policy'}", "suite=arithmetic"]
    assert configuration(options_of(asked)).cluster.address is None
    assert configuration(options_of([*asked, "cluster.address=auto"])).cluster.address == "auto"


def test_engines_do_not_share_their_gpus_with_the_trainer_of_the_run(tmp_path: Path) -> None:
    shared = ["cluster.sharing=pairs", "rollout.workers=4", "trainer.ranks=4"]
    write_config(compose(["+experiment=llama3b_intersection", *shared]), tmp_path)
    found = configuration(options_of([f"model={tmp_path / 'policy'}", "suite=math", "rollout.workers=8"]))
    assert (found.rollout.workers, found.cluster.sharing) == (8, "apart")


def test_the_configuration_of_the_run_that_made_the_model(tmp_path: Path) -> None:
    """What is named takes the place of the run's own, and nothing else does."""
    run = compose(["+experiment=tiny_cpu", "policy.system_prompt=Think.", "rollout.max_response_tokens=48", "seed=3"])
    write_config(run, tmp_path)
    model = f"model={tmp_path / 'policy'}"
    found = configuration(options_of([model, "suite=arithmetic"]))
    assert found.policy.path == str(tmp_path / "policy") and found.policy.system_prompt == "Think."
    assert found.rollout == run.rollout and found.critic is None and found.seed == 3
    assert configuration(options_of([f"model={tmp_path / 'exports' / 'step_000004'}", "suite=arithmetic"])).seed == 3
    more = ["critic=truth", "rollout.temperature=0.5", "seed=4"]
    found = configuration(options_of([model, "suite=arithmetic", *more]))
    assert found.critic and found.critic.kind == "truth" and found.seed == 4
    assert found.rollout == run.rollout.model_copy(update={"temperature": 0.5})
    (tmp_path / "config.yaml").write_text((tmp_path / "config.yaml").read_text() + "colour: 1\n")
    with pytest.raises(
        ConfigError, match=r"config\.yaml: the run's configuration cannot be used here: colour: no such"
    ):
        configuration(options_of([model, "suite=arithmetic"]))


def test_what_a_run_with_an_adapter_exported_is_sampled_as_it_is(tmp_path: Path) -> None:
    """Whole weights: an engine that waited for an adapter ended at its first request. Nor does its base judge here."""
    turns = ["trainer.lora.rank=8", "critic=base", "critic.template=brief", "cluster.sharing=turns"]
    run = compose(["+experiment=tiny_cpu", *turns])
    write_config(run, tmp_path)
    found = configuration(options_of([f"model={tmp_path / 'whole'}", "suite=arithmetic"]))
    policy = ModelFiles(folder=tmp_path / "whole", tokenizer=tmp_path / "whole", window=512, vocabulary=512)
    of_run, alone = rollout_settings(run, policy), rollout_settings(found, policy, trained=False)
    assert (of_run.lora_rank, of_run.judges, of_run.weight_transfer) == (8, True, "capo_shm")
    assert (alone.lora_rank, alone.judges, alone.weight_transfer) == (None, False, None)


def test_where_things_are_kept() -> None:
    def folder(*arguments: str) -> str:
        return str(options_of(arguments).folder)

    assert folder("model=runs/x/policy", "suite=paper") == "evaluations/runs-x-policy-paper"
    assert folder("model=Qwen/Qwen2.5-7B", "suite=a/my.jsonl") == "evaluations/Qwen-Qwen2.5-7B-my"
    assert folder(TINY, "suite=arithmetic", "out=here") == "here"


def test_critiques_that_failed_are_asked_for_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no others: neither what adaptive voting did without, nor what is there. Other critics need another folder."""
    problems, out = tmp_path / "own.jsonl", tmp_path / "out"
    problems.write_text("".join(json.dumps({"question": f"{n}?", "answer": "7"}) + "\n" for n in range(3)))
    arguments = [TINY, f"suite={problems}", f"out={out}", "runs=1", "critic=http", "critic.served_model=judge"]
    arguments += ["critic.attempts=1", "critic.critiques=4", "critic.adaptive=true", "critic.full_share=0"]
    ids = [question.problem.id for _, question in questions_of(problems)]
    out.mkdir()
    (out / "responses.jsonl").write_text("".join(json.dumps(asdict(answered(name))) + "\n" for name in ids))
    asked: list[str] = []
    down = True

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        (step,) = unwrap(body["messages"][1]["content"])
        asked.append(step)
        if down and ids[1] in step:
            return web.Response(status=500)
        return chat([render_reply([])] * body["n"], usage={"prompt_tokens": 9, "completion_tokens": 8})

    with serving_in_thread(answer) as endpoint:
        command = [*arguments, f"critic.endpoints=[{endpoint}]"]
        assert main(command) == 0
        assert "of 1 of 3 responses critiques failed; this command asks again" in capsys.readouterr().err
        found = json.loads((out / "results.json").read_text())["benchmarks"]["own"]
        assert (found["process"]["value"], found["unjudged"]["value"]) == (1, pytest.approx(1 / 3))
        down = False
        asked.clear()
        assert main(command) == 0
        assert len(asked) == 1 and ids[1] in asked[0]
        assert "critiques failed" not in capsys.readouterr().err
        assert main(command) == 0
        assert len(asked) == 1
        found = json.loads((out / "results.json").read_text())["benchmarks"]["own"]
        assert (found["process"]["value"], found["unjudged"]["value"]) == (1, 0)
        assert main([*command, "critic.critiques=8"]) == 2
        assert "what other critics say (critiques 4, now 8)" in capsys.readouterr().err


def questions_of(path: Path) -> list[tuple[str, Question]]:
    return [(n, q) for n, b in find_suite(str(path), ()).items() for q in questions(n, b, seed=0, count=None)]


def answered(problem: str) -> Response:
    return Response(
        benchmark="own",
        id=problem,
        mode="greedy",
        index=0,
        question="?",
        gold="7",
        response=f"{problem}: \\boxed{{7}}",
        finish="stop",
        num_tokens=3,
        answer="correct",
        extracted="7",
        reason=None,
    )


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "capo_ray.evaluate", TINY, "suite=arithmetic", "count=200", "runs=1", "k=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, f"out={out}", *more],
        cwd=out.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.engine
def test_it_is_stopped_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept = out / "responses.jsonl"
    first = start(out)
    deadline = time.monotonic() + 300
    while not (kept.is_file() and kept.read_text().count("\n") >= 20):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "interrupted. The same command goes on from here." in said
    before = kept.read_text().splitlines()
    assert 20 <= len(before) < 1000

    second = start(out, "critic=truth")
    shown, said = second.communicate(timeout=400)
    assert (second.returncode, said) == (0, "")  # no library's lines
    lines = kept.read_text().splitlines()
    assert len(lines) == 1000 and lines[: len(before) - 1] == before[:-1]
    results = json.loads((out / "results.json").read_text())["benchmarks"]["arithmetic"]
    assert results["problems"] == 200 and 0.9 < results["greedy"]["value"] <= 1
    assert 0.3 < results["avg@4"]["value"] < results["pass@2"]["value"] < results["pass@4"]["value"] < 1
    assert results["process"]["value"] == results["process_true"]["value"] > 0.8  # this critic knows the truth
    assert "greedy" in shown and "process_true" in shown

    assert main([f"replay={out}", f"out={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "results.json").read_text() == (out / "results.json").read_text()
    assert main([TINY, "suite=arithmetic", f"out={out}", "k=2"]) == 2
