"""What the doctor says of what a run asks for, of a cluster, and as a program."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.blocks import Tracking
from capo_ray.config.compose import compose
from capo_ray.config.model import Model
from capo_ray.doctor import __main__ as program
from capo_ray.doctor import cluster, wanted
from capo_ray.doctor.finding import Finding, fail, ok, warn
from capo_ray.models.find import ASSETS
from capo_ray.planning.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
TINY = compose(["+experiment=tiny_cpu"])
PAPER = compose(["+experiment=llama3b_intersection"])
HERE = Machine(cpus=2, gpus=0, memory_gib=23.0)


def refuses(name: str) -> str:
    return "it is gated, and the login here (if any) has no access"


def gives(name: str) -> str:
    return ""


def never(name: str) -> str:
    raise AssertionError(f"the hub was asked for {name}")


def files(model: Model, ask: Callable[[str], str] = never, free: float = 1000) -> Finding:
    return wanted.model_files("policy", model, ask, cache_free_gib=free)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tiny_policy", tmp_path / "model"))


def test_epochs_are_as_many_steps_as_the_run_would_take(tmp_path: Path) -> None:
    def found(*given: str) -> Finding:
        return wanted.epochs(compose(["+experiment=tiny_cpu", *given]))

    file = tmp_path / "x.jsonl"
    file.write_text(
        "".join(json.dumps({"problem": f"{n}+1?", "solution": f"\\boxed{{{n}}}"}) + "\n" for n in range(20))
    )
    config = compose(["+experiment=tiny_cpu", "data=math", f"data.path={file}", "epochs=2"])
    steps = math.ceil(40 / config.prompts_per_step)
    assert wanted.epochs(config) == ok("epochs", f"2 passes over the problems are {steps} steps")
    assert wanted.epochs(config) in program.examine(config)[1]
    assert found("epochs=0.01", "data.limit=1000") == ok(
        "epochs", f"0.01 passes over the problems are {math.ceil(10 / config.prompts_per_step)} steps"
    )
    broken = found("data=math", "data.path=/none.jsonl", "epochs=1")
    assert broken.state == "fail" and broken.found.startswith(
        "data.path: there is no file /none.jsonl; pass data.path="
    )
    away = found("data=math", "epochs=1")
    assert away.state == "warn" and away.found == (
        "1 passes over the problems of DigitalLearningGmbH/MATH-lighteval are counted when the run starts: they are "
        "not here"
    )


def test_room() -> None:
    fitting = wanted.room(TINY, HERE, "here")
    assert fitting.found == ("tiny_cpu needs 0 GPUs and 0.5 cores; here: 2 cores, 23.0 GiB of memory, no GPU")
    short = wanted.room(PAPER, HERE, "here")
    assert (short.state, short.found) == ("fail", "missing: 8 GPUs (here: 0); 9 cores (here: 2)")
    one_card = compose(["+experiment=qwen1_5b_intersection", "+size=one_gpu_80gb"])
    asleep = wanted.room(one_card, Machine(cpus=16, gpus=1, memory_gib=32, gpu_gib=79.6), "here")
    assert asleep.found.startswith("missing: about 43.9 GiB of memory for what is off the GPUs (here: 32.0)")
    off = compose(["+experiment=qwen7b_grpo", "trainer.offload=optimizer"])
    node = Machine(cpus=128, gpus=8, memory_gib=1000, gpu_gib=79.6)
    assert "and about 141.9 GiB of memory for what is off the GPUs; here" in wanted.room(off, node, "here").found


def test_the_models_of_a_run() -> None:
    assert [place for place, _ in wanted.models(PAPER)] == ["policy", "critic.model"]


def test_model_files_that_are_here(model: Path) -> None:
    assert files(Model(path="asset:tiny_policy")).found == "asset:tiny_policy, files whole"
    assert files(Model(path=str(model))).found == f"{model}, files whole"


def test_model_files_that_are_not_whole(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    broken = files(Model(path=str(model)))
    assert broken.found == f"{model}: model.safetensors is a git-lfs pointer (git lfs pull)"
    weights.unlink()
    assert files(Model(path=str(model))).found == f"{model}: no *.safetensors"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "tokenizer.json").unlink()
    assert files(Model(path=str(model))).found == (
        f"{model}: no tokenizer.json, no model-1.safetensors, no model-2.safetensors"
    )


def test_model_files_that_are_not_here() -> None:
    assert files(Model(path="/nowhere")).found == "'/nowhere' is no folder here"
    made = files(Model(path="./models/qwen7b_sft"))
    assert made.fix == "make it: python -m capo_ray.sft +experiment=qwen7b_sft"
    gated = files(PAPER.policy, refuses)
    assert gated.state == "fail" and gated.found.startswith(
        "meta-llama/Llama-3.2-3B-Instruct is not here, and the hub does not give it: it is gated, and"
    )
    download = files(PAPER.policy, gives)
    assert (download.state, download.fix) == (
        "warn",
        "hf download meta-llama/Llama-3.2-3B-Instruct --exclude '*.bin' --exclude '*.pth' --exclude '*.gguf' "
        "--exclude 'original/*'",
    )
    assert download.found.endswith(" is not here; about 6 GiB will be downloaded at the start")
    assert files(PAPER.policy, gives, free=2).found.endswith("its 6 GiB do not fit the cache, which has 2 left")


def test_a_random_model_needs_a_tokenizer(tmp_path: Path) -> None:
    random = compose(["+experiment=tiny_cpu_text"]).policy
    assert files(random.model_copy(update={"tokenizer": None})).fix == "pass policy.tokenizer=FOLDER"
    there = random.model_copy(update={"tokenizer": str(ASSETS / "tiny_policy")})
    assert files(there).state == "ok"
    missing = random.model_copy(update={"tokenizer": str(tmp_path)})
    assert files(missing).found == f"{tmp_path} has no tokenizer.json"


@contextmanager
def hub(status: int, **headers: str) -> Iterator[str]:
    """A server that answers every request so; its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *parts: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (200, "", ""),
        (403, "GatedRepo", "it is gated, and the login here (if any) has no access"),
        (401, "RepoNotFound", "there is none of that name, or it is private"),
        (500, "", "it cannot be reached (HfHubHTTPError)"),
    ],
)
def test_what_the_hub_says(status: int, code: str, reason: str) -> None:
    with hub(status, **({"X_Error_Code": code} if code else {})) as address:
        assert wanted.ask_hub("owner/name", endpoint=address) == reason


def test_a_hub_that_is_not_there() -> None:
    assert wanted.ask_hub("owner/name", endpoint="http://127.0.0.1:9") == "it cannot be reached (ConnectError)"


def test_folders_that_every_node_must_see(tmp_path: Path) -> None:
    """Not those that ship with the package, nor what will be downloaded."""
    assert wanted.folders(TINY) == wanted.folders(PAPER) == []
    policy = TINY.policy.model_copy(update={"path": str(tmp_path)})
    assert wanted.folders(TINY.model_copy(update={"policy": policy})) == [str(tmp_path)]


def test_data(tmp_path: Path) -> None:
    """Of training and of evaluation."""
    assert wanted.sources(TINY) == []
    training, held_out = wanted.sources(PAPER)
    assert (training.place, held_out.place) == ("data", "data.evaluation")
    there = training.model_copy(update={"path": str(tmp_path)})
    assert wanted.data(there, never).found == str(tmp_path)
    gone = wanted.data(held_out.model_copy(update={"path": "some/file.jsonl"}), never)
    assert gone.found == "there is no file some/file.jsonl"
    assert gone.fix == "pass data.evaluation.path=FILE.jsonl, a folder or a Hugging Face id"
    assert wanted.data(held_out, gives).found == "HuggingFaceH4/MATH-500 on the Hugging Face hub"
    refused = wanted.data(training, refuses)
    assert refused.state == "warn"
    assert refused.found.endswith(
        "it is gated, and the login here (if any) has no access; well only if it was loaded here before"
    )


def test_critic_servers() -> None:
    assert wanted.critic_servers(TINY).found == "none are asked"
    served = ["critic=http", "critic.endpoints=[http://127.0.0.1:9/v1]", "critic.served_model=judge"]
    refused = wanted.critic_servers(compose(["+experiment=tiny_cpu", *served]))
    assert refused.state == "fail"
    assert refused.found.startswith("critic.endpoints: no server can be used: http://127.0.0.1:9/v1/models:")


@pytest.mark.parametrize(
    ("mode", "key", "state", "found"),
    [
        ("off", "", "ok", "off"),
        ("offline", "", "ok", "offline"),
        ("auto", "", "warn", "nobody is logged in: it is written below the run's directory"),
        ("auto", "k", "ok", "online"),
        ("online", "", "fail", "online was asked for, and nobody is logged in"),
        ("online", "k", "ok", "online"),
    ],
)
def test_wandb(mode: str, key: str, state: str, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    finding = wanted.wandb(Tracking.model_validate({"wandb": mode}))
    assert (finding.state, finding.found) == (state, found)


def test_the_directory_of_a_run(tmp_path: Path) -> None:
    assert wanted.run_dir(TINY, tmp_path / "new" / "run").state == "ok"
    (tmp_path / "file").touch()
    taken = wanted.run_dir(TINY, tmp_path)
    assert taken.found.startswith(f"the run directory {tmp_path} exists and is not empty")
    assert wanted.run_dir(TINY, tmp_path / "file" / "run").found == (
        f"the run directory {tmp_path}/file/run cannot be written: {tmp_path}/file is a file; pass another run_dir"
    )


def node(**changes: object) -> cluster.Node:
    here = cluster.look_at_node(())
    known = {name: getattr(here, name) for name in ("python", "versions", "gpu_gib", "driver", "unseen")}
    return cluster.Node(**(known | changes))  # type: ignore[arg-type]


def test_nodes_that_do_not_answer() -> None:
    machine = Machine(cpus=32, gpus=16, memory_gib=1, gpu_gib=80)
    assert cluster.answering({"a": node(), "b": node()}, {}, machine).found == "2 nodes: 32 cores, 16 GPUs"
    silent = cluster.answering({"a": node()}, {"b": "RuntimeEnvSetupError: no disk"}, machine)
    assert (silent.state, silent.found) == ("fail", "1 of 2 nodes do not answer: b: RuntimeEnvSetupError: no disk")


def test_nodes_with_other_software() -> None:
    assert cluster.same_software({"a": node()}).state == "ok"
    versions = cluster.look_at_node(()).versions
    other = node(versions=versions | {"ray": "2.1"}, python="3.11.0")
    differs = cluster.same_software({"a": node(), "b": other})
    mine = ".".join(map(str, sys.version_info[:3]))
    assert differs.found == f"not as here: b: python 3.11.0, not {mine}, ray 2.1, not {versions['ray']}"


def test_nodes_with_other_drivers() -> None:
    assert cluster.drivers({"a": node(driver="")}).found == "no GPU"
    assert cluster.drivers({"a": node(driver="580.1")}).found == "580.1"
    assert cluster.drivers({"a": node(driver="580.1"), "b": node(driver="590.2")}).state == "warn"
    assert cluster.drivers({"a": node(driver="550.1")}).found == "a has 550.1"


def test_nodes_that_do_not_see_the_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert cluster.seen_everywhere({"a": node()}, marker, ["/m"]).found == "run_dir and models seen by every node"
    blind = node(unseen=(str(marker), "/m"))
    finding = cluster.seen_everywhere({"a": node(), "b": blind}, marker, ["/m"])
    assert finding.found == f"1 of 2 nodes do not see run_dir ({tmp_path}), /m; first b"
    assert cluster.seen_everywhere({}, None, []).found == "run_dir cannot be written to from here"


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    away = TINY.model_copy(update={"cluster": TINY.cluster.model_copy(update={"address": "127.0.0.1:9"})})
    machine, (finding,) = cluster.cluster(away, tmp_path / "run", [])
    assert machine is None
    assert finding.found == "none at 127.0.0.1:9: [Errno 111] Connection refused"
    assert list(tmp_path.iterdir()) == []


def test_the_table_and_the_verdict() -> None:
    findings = [ok("python", "3.11"), warn("disk", "little", "free some"), fail("gpus", "none", "buy one")]
    assert program.table(findings, colour=False).splitlines() == [
        "ok    python  3.11",
        "warn  disk    little",
        "              fix: free some",
        "fail  gpus    none",
        "              fix: buy one",
    ]
    assert program.table(findings, colour=True).startswith("\x1b[32mok  \x1b[0m  python")
    assert program.summary(TINY, findings, ["tiny_cpu"]).splitlines()[1:] == [
        "tiny_cpu cannot run as it stands: 1 ok, 1 warn, 1 fail",
        "experiments with room here: tiny_cpu",
    ]
    assert "tiny_cpu can run: 1 ok" in program.summary(TINY, findings[:1], [])


def doctor(*arguments: str, cwd: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "WANDB_MODE": "offline"}
    start = ["-c", code] if code else ["-m", "capo_ray.doctor"]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_tiny_run_is_looked_at_without_arguments(tmp_path: Path) -> None:
    done = doctor("out=report.json", cwd=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["experiment"], done.returncode) == ("tiny_cpu", int(report["state"] == "fail")), done.stdout
    assert "tiny_cpu" in report["experiments_with_room"] and report["machine"]["cpus"] > 0
    assert all(set(finding) == {"check", "state", "found", "fix"} for finding in report["findings"])
    assert len(done.stdout.splitlines()) > len(report["findings"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

HIDDEN = ("ray", "vllm", "deepspeed", "transformers", "wandb", "datasets", "safetensors", "pyarrow", "torch", "aiohttp",
          "rich", "numpy", "psutil", "tensorboard", "nicegui")

class Core(PathFinder):
    '''What the core install has.'''
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        return (one for one in super().find_distributions(*context) if one.name.split("-")[0] not in HIDDEN)

sys.meta_path = [Core if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv[0] = "capo_ray.doctor"
runpy.run_module("capo_ray.doctor", run_name="__main__", alter_sys=True)
"""


def test_the_core_install_can_ask(tmp_path: Path) -> None:
    """Without any engine, for an experiment and a cluster that are far away: it says so and does not break."""
    done = doctor("+experiment=llama3b_intersection", "cluster.address=auto", cwd=tmp_path, code=WITHOUT)
    assert (done.returncode, done.stderr) == (1, "")
    for line in (
        "fail  packages not installed: deepspeed 0.19.8, ray 2.60.0, torch 2.13.0, transformers 5.19.0, vllm",
        "fail  cluster Ray is not installed, so none can be joined",
        "warn  wandb not installed; the run goes on without it",
    ):
        assert " ".join(line.split()) in " ".join(done.stdout.split()), done.stdout


def test_what_is_wrong_with_the_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["stepz=3"]) == 2
    assert capsys.readouterr().err.startswith("error: stepz: no such key")
    assert program.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m capo_ray.doctor")
    assert program.main(["tracking.wandb=off", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: out: {tmp_path} cannot be written: Is a directory\n"


@pytest.mark.ray
def test_a_cluster_is_asked_node_by_node(tmp_path: Path) -> None:
    """A real one of this machine, joined by address."""
    import ray

    ray.shutdown()  # of another test's session, if this process has one
    quiet: Any = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    session = ray.init("local", num_cpus=2, _memory=32 << 30, **quiet)  # whatever else runs on this machine
    address = session.address_info["address"]
    try:
        done = doctor(f"cluster.address={address}", f"run_dir={tmp_path / 'run'}", "tracking.wandb=off", cwd=tmp_path)
    finally:
        ray.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("cluster           1 nodes: 2 cores, 0 GPUs", "run_dir seen by every node", "as here on every node"):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []
