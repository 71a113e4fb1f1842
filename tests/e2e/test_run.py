"""The whole pipeline as a user starts it: real Ray, vLLM and DeepSpeed, on CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from openai_server import chat, serving_in_thread

from capo_ray.credit.critique import render_reply

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

QUICK = (
    "+experiment=tiny_cpu",
    "prompts_per_step=4",
    "trainer.responses_per_update=8",
    "responses_per_prompt=4",
    "data.evaluation_prompts=16",
    "tracking.wandb=off",
    "checkpoint_every=2",
    "keep_checkpoints=3",
)
ROOT = Path(__file__).resolve().parents[2]
MARK = "CAPO_RAY_TEST_RUN"
KEY = "sk-a-secret"


@dataclass(frozen=True)
class Ran:
    code: int
    output: str
    run_dir: Path
    mark: str

    @property
    def steps(self) -> list[dict[str, Any]]:
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if "staleness" in line]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if "evaluation/responses" in line]

    @property
    def samples(self) -> list[dict[str, Any]]:
        files = sorted((self.run_dir / "samples").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def folder_of(mark: str) -> Path:
    """Where a run puts its temporary files: short, since paths of sockets have a limit of 107 characters."""
    folder = Path("/tmp") / mark[:8]
    folder.mkdir(exist_ok=True)
    return folder


def start(run_dir: Path, overrides: Sequence[str], mark: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "capo_ray.launch", *overrides, f"run_dir={run_dir}"],
        cwd=run_dir.parent,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder_of(mark))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that an interrupt reaches it and not this process
    )


def run(run_dir: Path, *overrides: str) -> Ran:
    mark = uuid.uuid4().hex
    process = start(run_dir, overrides, mark)
    output = rest_of(process)
    return Ran(process.returncode, output, run_dir, mark)


def rest_of(process: subprocess.Popen[str]) -> str:
    """What a run says until it ends."""
    try:
        return process.communicate(timeout=400)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"the run did not end:\n{process.communicate()[0]}") from None


def left_behind(mark: str) -> list[str]:
    """Processes that still carry the run's mark in their environment, a few seconds after it ended, or else what is
    left of its Ray session."""
    for _ in range(20):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue
        if not found:
            left = sorted(ours(str(folder_of(mark))))
            shutil.rmtree(folder_of(mark))
            return left
        time.sleep(0.5)
    return found


def run_and_kill(run_dir: Path, victims: Mapping[str, Sequence[str]], *overrides: str) -> Ran:
    """A run in which a process is killed once a line begins with each key of `victims`: the first below the program
    with these in their names, from the outermost."""
    mark = uuid.uuid4().hex
    process = start(run_dir, overrides, mark)
    assert process.stdout is not None
    seen, left = "", dict(victims)
    for line in process.stdout:
        seen += line
        if (after := next(filter(line.startswith, left), None)) is not None:
            victim = psutil.Process(process.pid)
            for name in left.pop(after):
                below = victim.children(recursive=True)
                victim = next(child for child in below if name in child.name())
            victim.kill()
        if not left:
            break
    output = seen + rest_of(process)
    ran = Ran(process.returncode, output, run_dir, mark)
    assert ran.code == 0, ran.output
    assert left_behind(mark) == []
    return ran


def interrupt(run_dir: Path, sent: signal.Signals, after: str, *overrides: str) -> None:
    """Send a signal to every process of the run's group once a line begins with `after`. It must end in seconds, name
    its checkpoint and leave nothing behind."""
    mark = uuid.uuid4().hex
    process = start(run_dir, overrides, mark)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(after):  # the checkpoint of the step before is whole
            break
    os.killpg(process.pid, sent)
    begun = time.monotonic()
    output = rest_of(process)
    assert process.returncode == 130, seen + output
    assert time.monotonic() - begun < 30
    assert "The last checkpoint is" in output and "resume=true" in output
    assert left_behind(mark) == []


def assert_same_numbers(ran: Ran, whole: Ran) -> None:
    for name in ("step", "evaluation/outcome/accuracy"):
        assert [line[name] for line in ran.evaluations] == [line[name] for line in whole.evaluations], name
    assert [line["step"] for line in ran.steps] == [line["step"] for line in whole.steps]
    for name in ("reward/mean_token_reward", "outcome/accuracy", "response/mean_tokens", "trainer/loss"):
        assert [line[name] for line in ran.steps] == pytest.approx([line[name] for line in whole.steps], abs=1e-4), name


def ours(folder: str) -> set[str]:
    """Shared memory, Ray's folders and vLLM's sockets."""
    return {path.name for path in Path(folder).iterdir() if path.name.startswith("capo_ray-") or path.is_socket()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Four steps of the tiny experiment."""
    before = ours("/dev/shm")
    ran = run(tmp_path_factory.mktemp("whole") / "run", *QUICK, "steps=4")
    assert ran.code == 0, ran.output
    assert left_behind(ran.mark) == []
    assert ours("/dev/shm") == before
    return ran


def test_a_run_says_what_it_does_and_leaves_its_files(whole: Ran) -> None:
    assert "step 4/4" in whole.output
    assert f"Everything of this run: {whole.run_dir}" in whole.output
    for name in (
        "config.yaml",
        "critic_prompt.jinja",
        "metrics.jsonl",
        "samples",
        "tensorboard",
        "logs",
        "checkpoints/step_000004/state.json",
    ):
        assert (whole.run_dir / name).exists(), name
    assert [line["step"] for line in whole.steps] == [0, 1, 2, 3]
    assert all(line["staleness"] == 0 for line in whole.steps)
    assert sum(line.get("critic/canaries", 0) for line in whole.steps) >= 1


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(whole: Ran) -> None:
    """After every sync, or the difference would grow with the steps."""
    for line in whole.steps:
        gaps = {name: value for name, value in line.items() if "gap" in name}
        assert gaps and all(abs(value) < 1e-3 for value in gaps.values()), gaps


def test_samples_hold_credit_that_can_be_checked_by_hand(whole: Ran) -> None:
    assert whole.samples
    for sample in whole.samples:
        assert [step["start"] for step in sample["steps"][1:]] == [step["end"] for step in sample["steps"][:-1]]
        assert len(sample["critiques"]) == 4
        outcome = 2.0 if sample["answer"] == "correct" else 0.0
        paid = set(sample["wrong_steps"] or ())
        for number, step in enumerate(sample["steps"]):
            first, end = step["tokens"]
            assert set(sample["token_rewards"][first:end]) <= {outcome - (number in paid)}


def test_an_interrupted_run_goes_on_with_the_same_numbers(whole: Ran, tmp_path: Path) -> None:
    """SIGTERM to every process, as `timeout` and Slurm send it: Ray's own head goes first."""
    interrupt(tmp_path / "run", signal.SIGTERM, "step 3/4", *QUICK, "steps=4", "checkpoint_every=1")
    ran = run(tmp_path / "run", *QUICK, "steps=4", "resume=true")
    assert ran.code == 0, ran.output
    assert left_behind(ran.mark) == []
    assert_same_numbers(ran, whole)


def test_what_is_killed_costs_no_numbers(whole: Ran, tmp_path: Path) -> None:
    """vLLM's own process dies, the actor above it ends with it, Ray starts both again, and nothing goes back. A trainer
    rank dies after step 3 of 4, and all goes back to the checkpoint of step 2."""
    victims = {
        "step 1/4": ("CriticActor", "VLLM::"),
        "step 2/4": ("RolloutActor", "VLLM::"),
        "step 3/4": ("TrainerActor",),
    }
    ran = run_and_kill(tmp_path / "run", victims, *QUICK, "steps=4")
    assert sum(line["critic/retries"] for line in ran.steps) > 0
    assert "rollout worker 0 died: " in ran.output, ran.output
    assert ran.output.count("an actor was lost: ") == 1 and "TrainerActor" in ran.output, ran.output
    assert [line["run/restarts"] for line in ran.steps] == [0, 0, 1, 1]
    assert_same_numbers(ran, whole)


def test_a_run_directory_is_never_mixed(whole: Ran) -> None:
    ran = run(whole.run_dir, *QUICK, "steps=4")
    assert ran.code == 2
    assert left_behind(ran.mark) == []
    assert f"the run directory {whole.run_dir} exists and is not empty: pass resume=true" in ran.output


def test_two_of_everything_one_step_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two critics that vote in turn too, one behind a server that wants a key, and an advantage and a surrogate out of
    a file in the folder that it is started from."""
    keys: set[str | None] = set()

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        keys.add(request.headers.get("Authorization"))
        return chat([render_reply([0])] * body.get("n", 1))

    monkeypatch.setenv("JUDGE_KEY", KEY)
    (tmp_path / "my_file.py").write_text(
        "from capo_ray.credit.advantage import ALGORITHMS\nfrom capo_ray.learn.surrogate import clip\n"
        "CAPO = ALGORITHMS['capo']\n"
    )
    with serving_in_thread(answer) as endpoint:
        ran = run(
            tmp_path / "run",
            *QUICK,
            "steps=4",
            "rollout.workers=2",
            "critic.workers=2",
            f"critic.others=[{{kind:http,endpoints:['{endpoint}'],served_model:judge,api_key_env:JUDGE_KEY}}]",
            "critic.tokens_per_step=3072",  # two groups, as long as nobody knows what critiques cost
            "reward.aggregators=2",
            "trainer.zero_stage=3",
            "trainer.optimisation_passes=2",
            "algorithm.max_staleness=1",
            "algorithm.advantage=my_file:CAPO",
            "algorithm.surrogate=my_file:clip",
            "algorithm.old_logprobs=sampler",
            "algorithm.kl_weight=0.01",
            "reward.vote=average",
        )
    assert ran.code == 0, ran.output
    assert [line["staleness"] for line in ran.steps] == [0, 1, 1, 1]
    assert [line["critic/over_budget_share"] for line in ran.steps[:2]] == [0.5, 0.5]
    assert all(line["critic/over_budget_share"] < 0.5 for line in ran.steps[2:])
    assert {tuple(sample["versions"]) for sample in ran.samples if sample["step"] == 3} == {(2,)}
    server = f"judge at {endpoint.removeprefix('http://').removesuffix('/v1')}"
    judged = [sample["critiques"] for sample in ran.samples if any(c["critic"] for c in sample["critiques"])]
    assert judged  # what is over the budget has critiques that nobody was asked for
    for critiques in judged:
        here = critiques[0]["critic"]
        assert here in ("critic-0", "critic-1") and [c["critic"] for c in critiques] == [here, server] * 2
        assert [c["wrong_steps"] for c in critiques][1::2] == [[0], [0]]
    assert keys == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in ran.run_dir.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in [*written, ran.output.encode()])
    assert left_behind(ran.mark) == []


MUMBLER = """
from capo_ray.engines.protocols import Completion, Replies

class Mumbler:
    name = "mumbler"

    async def complete(self, messages, sampling, *, n, seed):
        said = Completion(text="Well, well.", truncated=False, num_tokens=4)
        return Replies(completions=(said,) * n, prompt_tokens=0, cached_tokens=0)

    def metrics(self):
        return {}
"""


def test_a_critic_that_nobody_can_read_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "mumbler.py").write_text(MUMBLER)
    own = ("critic=own", "critic.kind=mumbler:Mumbler", "critic.failure_window=16")
    ran = run(tmp_path / "run", *QUICK, "steps=4", *own)
    assert ran.code == 1
    assert "of the last" in ran.output and "critiques failed (unreadable" in ran.output
    assert "Traceback" not in ran.output
    assert left_behind(ran.mark) == []


def test_the_ledger_scores_as_the_run_did(whole: Ran) -> None:
    """To the last bit, for every response that is in the samples too."""
    from capo_ray.credit.group import score_group
    from capo_ray.ledger import read

    scored = {}
    for scheme, groups in read(whole.run_dir):
        for group in groups:
            score = score_group(group.members, scheme)
            for member, advantages in zip(score.members, score.advantages, strict=True):
                scored[group.step, group.prompt_id, member.rollout.index] = (member.token_rewards, advantages)
    assert len(scored) == 4 * 4 * 4
    assert whole.samples
    for sample in whole.samples:
        rewards, advantages = scored[sample["step"], sample["prompt_id"], sample["index"]]
        assert list(rewards) == sample["token_rewards"]
        assert (None if advantages is None else list(advantages)) == sample["advantages"]


def test_real_text_with_a_full_size_tokenizer_until_ctrl_c(tmp_path: Path, test_data: Path) -> None:
    import gzip

    tokenizer = tmp_path / "qwen2"
    tokenizer.mkdir()
    for file in (test_data / "tokenizers" / "qwen2").iterdir():
        content = file.read_bytes()
        (tokenizer / file.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(content) if file.suffix == ".gz" else content
        )
    interrupt(
        tmp_path / "run",
        signal.SIGINT,
        "step   2/",
        "+experiment=tiny_cpu_text",
        f"data.path={test_data / 'math' / 'math_train.jsonl.gz'}",
        f"policy.tokenizer={tokenizer}",
        "data.limit=200",
        "steps=400",
        "prompts_per_step=2",
        "responses_per_prompt=2",
        "checkpoint_every=1",
        "tracking.wandb=off",
    )
    steps = Ran(130, "", tmp_path / "run", "").steps
    assert steps and all("critic/unreadable_share" in line or line["critic/valid_share"] < 1 for line in steps)


def test_it_learns(tmp_path: Path) -> None:
    """One short seed with half of the critiques; `make learn-check` runs the whole experiment with three."""
    short = ("steps=12", "critic.critiques=2", "data.evaluation_prompts=500", "tracking.wandb=off")
    ran = run(tmp_path / "run", "+experiment=tiny_cpu", *short)
    assert ran.code == 0, ran.output
    lines = map(json.loads, (ran.run_dir / "metrics.jsonl").read_text().splitlines())
    name = "evaluation/truth/right_answer_and_process"
    before, after = [line[name] for line in lines if name in line]
    assert after - before > 0.05, ran.output
