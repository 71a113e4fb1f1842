"""launch/job.py: what it refuses, what it hands to Ray, and the whole way on a cluster with a dashboard."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from capo_ray.engines.ports import free_port
from capo_ray.leaving import adopt_orphans

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "launch" / "job.py"
SCORED = [
    "model=asset:tiny_policy",
    "suite=arithmetic",
    "count=20",
    "runs=1",
    "+experiment=tiny_cpu",
]


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("job", JOB)
    assert spec and spec.loader
    module = sys.modules["job"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("program", "key", "more"), [("launch", "run_dir", []), ("evaluate", "out", []), ("sft", "out", ["device=cpu"])]
)
def test_what_is_written_needs_a_place_that_stays(
    job: ModuleType, capsys: pytest.CaptureFixture[str], program: str, key: str, more: list[str]
) -> None:
    for place, shown in (("", "none"), ("runs/x", "runs/x")):
        assert job.main(["submit", "--program", program, "+experiment=tiny_cpu", *more, f"{key}={place}"]) == 2
        assert capsys.readouterr().err.startswith(
            f"error: {key} must be an absolute path on storage that every node sees, got {shown}: a job's own"
        )
    job.check(job.Request(program=program, arguments=(*more, f"{key}=/shared/x")))


def test_a_plan_writes_nothing_where_there_are_plans(job: ModuleType) -> None:
    for program in ("launch", "sft"):
        job.check(job.Request(program=program, arguments=("dry_run=true",)))
    with pytest.raises(job.JobError, match="out must be an absolute path"):
        job.check(job.Request(program="evaluate", arguments=("dry_run=true",)))


def test_the_doctor_writes_nothing(job: ModuleType) -> None:
    job.check(job.Request(program="doctor", arguments=()))


def test_a_file_of_this_machine(
    job: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another folder it would not be found, or be another; a name of the hub is no file, and the checkout is
    sent along."""
    here = os.path.relpath(tmp_path)
    assert job.main(["submit", "--program", "evaluate", f"model={here}", "suite=math", "out=/shared/x"]) == 2
    assert capsys.readouterr().err == (
        f"error: model={here} is a path of this machine, and the job runs on another: pass the absolute path of a copy "
        "on storage that every node sees\n"
    )
    job.check(job.Request(program="evaluate", arguments=("model=Qwen/Qwen2.5-7B", "out=/shared/x")))
    monkeypatch.chdir(ROOT)
    job.check(job.Request(program="launch", arguments=("run_dir=/shared/x", "data.path=conf/config.yaml")))
    with pytest.raises(job.JobError, match=r"critic\.template=tests/conftest\.py is a path of this machine"):
        job.check(job.Request(program="launch", arguments=("run_dir=/r", "critic.template=tests/conftest.py")))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--gpus", "8", "run_dir=/r"],
            "--gpus is for programs with GPUs of their own (evaluate, critic_bench, sft); launch asks Ray for its own",
        ),
        (["--program", "sft", "out=/o"], "sft trains on the GPUs of one node: pass --gpus N, or device=cpu"),
        (["--program", "sft", "--gpus", "-1", "out=/o"], "--gpus must be at least 0, got -1"),
    ],
)
def test_gpus_of_the_programs_own(
    job: ModuleType, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    assert job.main(["submit", *given]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


class Client:
    """Takes jobs as Ray does."""

    def __init__(self) -> None:
        self.taken: dict[str, object] = {}

    def submit_job(self, **taken: object) -> str:
        self.taken = taken
        return "job"


def test_folders_are_left_out_at_the_top_alone(job: ModuleType, tmp_path: Path) -> None:
    """A user's own modules may stand in a folder called models."""
    from ray._private.runtime_env import packaging

    there = ["mine/models/vote.py", "mine/tests/data.py", "models/large.py", "docs/page.py", "mine/__pycache__/x.py"]
    for name in there:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text("x = 1")
    packaging._zip_files(str(tmp_path / "root"), job.LEFT_OUT, str(tmp_path / "sent.zip"), True)
    assert (
        sorted(name for name in zipfile.ZipFile(tmp_path / "sent.zip").namelist() if name.endswith(".py")) == there[:2]
    )


def test_what_ray_is_asked_for(job: ModuleType) -> None:
    client = Client()
    taught = job.Request(program="sft", arguments=("+experiment=qwen7b_sft", "out=/o"), gpus=8)
    job.submit(client, taught, {"HF_TOKEN": "t"}, None)
    assert client.taken["entrypoint"] == "exec python -m capo_ray.sft +experiment=qwen7b_sft out=/o"
    assert client.taken["entrypoint_num_gpus"] == 8
    again = job.resumed(client.taken["metadata"], [])
    assert (again.gpus, again.arguments) == (8, (*taught.arguments, "resume=true"))
    job.submit(client, job.Request(program="evaluate", arguments=("out=/o",)), {}, None)
    assert client.taken["entrypoint"] == "exec python -m capo_ray.evaluate cluster.address=auto out=/o"
    assert client.taken["entrypoint_num_gpus"] is None


def test_a_program_that_is_none(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["submit", "--program", "rm", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: --program must be one of launch, evaluate, critic_bench, sft, doctor, got 'rm'\n"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the following arguments are required: command; "),
        (["stpo"], "argument command: invalid choice: 'stpo'"),
        (["submit", "--gpus", "x", "a=b"], "argument --gpus: invalid int value: 'x'; "),
    ],
)
def test_flags_that_are_none(
    job: ModuleType, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(given) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1 and " --help says more" in told


def test_no_dashboard(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--address", "http://127.0.0.1:9", "list"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: no Ray dashboard answers at http://127.0.0.1:9 (Failed to connect to Ray")
    assert told.endswith("or bring it here: ssh -L 8265:127.0.0.1:8265 HEAD\n")


class Pretender(BaseHTTPRequestHandler):
    """A server that is none of Ray's, and notes who asks it."""

    asked: list[int]
    answer: bytes

    def do_GET(self) -> None:
        type(self).asked.append(self.server.server_address[1])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(type(self).answer)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("answer", [b"[]", b"null", b"{}", b"5", b"<html>", b'{"ray_version": [1]}', b'"x"'])
def test_the_address_that_is_given_is_asked_and_may_be_no_dashboard(
    job: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """Whatever RAY_ADDRESS says: a `stop` must not reach another cluster."""
    Pretender.asked, Pretender.answer = [], answer
    with ThreadingHTTPServer(("127.0.0.1", 0), Pretender) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert job.main(["--address", address, "list"]) == 2
        server.shutdown()
    told = capsys.readouterr().err
    assert told.startswith("error: ") and address in told and len(told.splitlines()) == 1
    assert set(Pretender.asked) == {server.server_address[1]} and os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


@pytest.mark.parametrize("address", ["nonsense", "head:6379", "auto", "ray://head:10001"])
def test_an_address_that_is_no_dashboards(job: ModuleType, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert job.main(["--address", address, "list"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {address} is no dashboard: name it as http://HEAD:8265")


def test_a_variable_that_is_not_set(job: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THIS_ONE", "1")
    monkeypatch.delenv("NO_SUCH_NAME", raising=False)
    assert job.environment_of(["THIS_ONE"]) == {"THIS_ONE": "1"}
    with pytest.raises(job.JobError, match="--env NO_SUCH_NAME: that variable is not set here"):
        job.environment_of(["NO_SUCH_NAME"])


def test_what_a_resumed_job_is_asked(job: ModuleType) -> None:
    asked = {"capo_ray": '["launch", "+experiment=tiny_cpu", "run_dir=/r", "steps=2", "resume=false"]'}
    assert job.resumed(asked, ["steps=9"]) == job.Request(
        program="launch", arguments=("+experiment=tiny_cpu", "run_dir=/r", "steps=9", "resume=true")
    )
    assert job.resumed({"capo_ray": '["evaluate", "suite=math", "out=/o"]'}, []).arguments == ("suite=math", "out=/o")
    for other in ({}, {"capo_ray": '["doctor"]'}):
        with pytest.raises(job.JobError, match="only jobs that `submit` started can be resumed, of: launch, evaluate"):
            job.resumed(other, [])


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Ray with a dashboard, started as on any node by launch/node.sh; the environment that names it."""
    home = tempfile.mkdtemp(prefix="capo_ray-job-")  # short: socket paths have a limit
    gcs, dashboard = free_port(), free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HEAD": "127.0.0.1",
        "RAY_PORT": str(gcs),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),  # of this cluster alone
    }
    options = ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=200000000", "--include-dashboard=true"]
    ports = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    with (Path(home) / "node.log").open("w") as log:
        node = subprocess.Popen(
            [str(ROOT / "launch" / "node.sh"), *options, *ports, f"--temp-dir={home}/ray"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 90
        while not listens(dashboard):
            assert node.poll() is None and time.monotonic() < deadline, (Path(home) / "node.log").read_text()
            time.sleep(0.5)
        yield environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "GCS": f"127.0.0.1:{gcs}"}
    finally:
        node.terminate()
        node.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def call(environment: dict[str, str], *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(JOB), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.ray
@pytest.mark.e2e
def test_submit_follow_stop_and_resume(tmp_path: Path) -> None:
    """On a real cluster: a run that is stopped on its way and goes on to its end; while it starts, a plan, a look at
    the cluster and a failure; while it starts again, an evaluation beside it. Orphans come to this process, which reaps
    none before the end, like the first process of many containers."""
    assert adopt_orphans()
    run_dir = tmp_path / "run"
    tiny = ["+experiment=tiny_cpu", "tracking.wandb=offline", "critic=null", "algorithm=grpo"]
    small = [
        *tiny,
        "prompts_per_step=2",
        "responses_per_prompt=2",
        "trainer.responses_per_update=4",
        "data.evaluation_prompts=0",
        "checkpoint_every=1",
    ]
    with cluster() as environment:
        call(environment, "submit", "--id", "long", "--detach", *small, "steps=5000", f"run_dir={run_dir}")
        stranger = environment | {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
        assert "asks for its token: set RAY_AUTH_MODE=token" in call(stranger, "list", code=2).stderr
        planned = call(environment, "submit", "--id", "plan", *tiny, "dry_run=true")
        assert "placement of tiny_cpu on cpu" in planned.stdout and planned.stderr.endswith("plan: succeeded\n")
        assert "placement of tiny_cpu on cpu" in call(environment, "follow", "plan").stdout
        again = call(environment, "submit", "--id", "plan", *tiny, "dry_run=true", code=2).stderr
        assert again.startswith(
            "error: the cluster does not take the job: ValueError: Job with submission_id plan already exists."
        ), again
        looked = call(environment, "submit", "--program", "doctor", *tiny, f"run_dir={tmp_path / 'other'}")
        assert "ok    cluster " in looked.stdout
        wrong = call(environment, "submit", "--id", "wrong", *tiny, "dry_run=true", "stepz=1", code=2)
        assert "stepz: no such key" in wrong.stdout and wrong.stderr.endswith("wrong: failed\n")
        assert "knows no job 'none'" in call(environment, "follow", "none", code=2).stderr

        deadline = time.monotonic() + 240
        while not list(run_dir.glob("checkpoints/step_*/state.json")):
            listed = call(environment, "list").stdout
            assert time.monotonic() < deadline and not re.search("^long +failed", listed, re.MULTILINE), listed
            time.sleep(2)
        stopped = call(environment, "stop", "long")
        assert "interrupted. The last checkpoint is" in stopped.stdout
        assert stopped.stderr.endswith("long: stopped. Go on with: resume long\n")
        said = call(environment, "follow", "long", code=130).stdout
        assert "Traceback" not in said, said
        assert "has ended already: stopped" in call(environment, "stop", "long", code=2).stderr

        done = max(int(path.name[5:]) for path in run_dir.glob("checkpoints/step_*"))
        call(environment, "resume", "--id", "again", "--detach", "long", f"steps={done + 1}")
        scores = tmp_path / "scores"
        call(environment, "submit", "--program", "evaluate", "--id", "scored", "--detach", *SCORED, f"out={scores}")
        taught = call(environment, "submit", "--program", "sft", "+experiment=qwen7b_sft", "dry_run=true")
        assert "sequences_per_update" in taught.stdout, taught.stdout
        waited = subprocess.run(
            [str(ROOT / "launch" / "run.sh"), *tiny, "dry_run=true"],
            env=environment | {"RAY_ADDRESS": environment["GCS"], "NODES": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert waited.returncode == 0 and "placement of tiny_cpu" in waited.stdout, waited.stderr

        assert f"Everything of this run: {run_dir}" in call(environment, "follow", "again").stdout
        assert (run_dir / "checkpoints" / f"step_{done + 1:06d}").is_dir()
        listed = call(environment, "list").stdout
        assert re.search(r"^long +stopped .* run_dir=", listed, re.MULTILINE)
        scored = call(environment, "follow", "scored").stdout
        assert "greedy" in scored and (scores / "responses.jsonl").is_file(), scored
