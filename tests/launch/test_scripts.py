"""The shell scripts of launch/, with stand-ins for srun, scontrol, ray and python that note how they are called."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), ROOT / "requirements" / "setup.sh"])

STANDS_BY = """#!/bin/bash
echo "$(basename "$0") $*" >> "$LOG"
trap 'echo "$(basename "$0") ended" >> "$LOG"; exit 0' TERM
while :; do sleep 0.05; done
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
while [[ $1 == --* ]]; do shift; done
"$@" &
trap 'kill -TERM $!; wait; exit 0' TERM
wait
"""
PYTHON = """#!/bin/bash
echo "python $*" >> "$LOG"
case "$*" in *wait_for_nodes*) exit "${WAITED:-0}" ;; esac
trap 'echo "python stopped" >> "$LOG"; exit 130' TERM
for ((n = 0; n < ${BUSY:-0}; n++)); do sleep 0.05; done
exit "${CODE:-0}"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
[[ $1 == show ]] && printf '%s\\n' "$FIRST" node2
exit 0
"""


class Stage:
    """A folder of stand-ins, in front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        bin_folder = folder / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        for name, text in {"ray": STANDS_BY, "srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        (bin_folder / "activate").touch()
        shutil.copytree(LAUNCH, folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "NODES"))}
        self.environment = kept | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "LOG": str(self.log)}

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [f"./launch/{script}", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and what was written to standard error."""
        process = self.start(script, *arguments, **environment)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, call: str) -> None:
        deadline = time.monotonic() + 30
        while not any(line.startswith(call) for line in self.calls()):
            assert time.monotonic() < deadline, self.calls()
            time.sleep(0.05)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script: Path) -> None:
    """shellcheck has nothing to say."""
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(checker), str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", ["node.sh", "run.sh"])
def test_a_script_says_how_it_is_used(stage: Stage, script: str) -> None:
    process = stage.start(script, "--help")
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert re.search(rf"^  \w+=\S+ launch/{script}", printed, re.MULTILINE)
    assert not printed.startswith("#") and "set -euo" not in printed
    assert stage.calls() == []


def test_the_head(stage: Stage) -> None:
    node = stage.start("node.sh", "--num-gpus=8", HEAD="127.0.0.1", RAY_PORT="7000")
    stage.wait_for("ray ")
    node.terminate()
    assert node.wait(30) == 0
    assert stage.calls() == [
        "ray start --head --port=7000 --node-ip-address=127.0.0.1 --disable-usage-stats --block --num-gpus=8",
        "ray ended",
    ]


def test_a_head_by_name(stage: Stage) -> None:
    node = stage.start("node.sh", HEAD=socket.gethostname())
    stage.wait_for("ray ")
    node.terminate()
    node.wait(30)
    assert stage.calls()[0] == "ray start --head --port=6379 --disable-usage-stats --block"


def test_a_worker_waits_for_the_head(stage: Stage) -> None:
    """127.0.0.2 is this machine too, and not one of its names."""
    with socket.socket() as head:
        head.bind(("127.0.0.2", 0))
        port = str(head.getsockname()[1])
        node = stage.start("node.sh", HEAD="127.0.0.2", RAY_PORT=port)
        time.sleep(0.5)
        assert stage.calls() == []
        head.listen()
        stage.wait_for("ray ")
        node.terminate()
        node.wait(30)
    assert stage.calls()[0] == f"ray start --address=127.0.0.2:{port} --disable-usage-stats --block"


def test_a_worker_gives_up(stage: Stage) -> None:
    code, errors = stage.run("node.sh", HEAD="127.0.0.2", RAY_PORT="9", WAIT_S="0")
    assert code == 1
    assert errors == (
        "node.sh: nothing listens at 127.0.0.2:9 after 0 s; see that Ray's head runs there and the port is open\n"
    )


def test_a_run_waits_for_its_nodes(stage: Stage) -> None:
    code, _ = stage.run("run.sh", "+experiment=tiny_cpu", "run_dir=/r", NODES="2", RAY_ADDRESS="h:1", CODE="3")
    assert code == 3
    assert stage.calls() == [
        "python ./launch/wait_for_nodes.py h:1 2 600",
        "python -m capo_ray.launch cluster.address=h:1 +experiment=tiny_cpu run_dir=/r",
    ]


def test_another_program(stage: Stage) -> None:
    stage.run("run.sh", "model=/m", "suite=math", "out=/o", PROGRAM="evaluate", RAY_ADDRESS="h:1")
    assert stage.calls()[1] == "python -m capo_ray.evaluate cluster.address=h:1 model=/m suite=math out=/o"


def test_a_program_that_uses_no_cluster(stage: Stage) -> None:
    code, told = stage.run("run.sh", "out=/o", PROGRAM="sft")
    assert (code, told) == (2, "run.sh: PROGRAM must be launch or evaluate, got sft\n")
    assert stage.calls() == []


def test_a_run_without_its_nodes_does_not_start(stage: Stage) -> None:
    assert stage.run("run.sh", "+experiment=tiny_cpu", WAITED="1")[0] == 1
    assert stage.calls() == ["python ./launch/wait_for_nodes.py auto 1 600"]


def test_a_run_that_began_goes_on(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    stage.run("run.sh", "+experiment=tiny_cpu", f"run_dir={tmp_path}/run", "steps=9")
    stage.run("run.sh", f"run_dir={tmp_path}/run", "resume=false")
    first, second = (line for line in stage.calls() if "capo_ray.launch" in line)
    assert first.endswith(f"run_dir={tmp_path}/run steps=9 resume=true")
    assert second.endswith(f"run_dir={tmp_path}/run resume=false")


def slurm(stage: Stage, **environment: str) -> dict[str, str]:
    job = {"SLURM_SUBMIT_DIR": str(stage.folder), "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[1-2]"}
    return job | {"SLURM_JOB_NUM_NODES": "2", "FIRST": "localhost"} | environment


def test_slurm(stage: Stage) -> None:
    """Ray on every node, the run on the first, and Ray gone at the end."""
    code, errors = stage.run("slurm.sh", "+experiment=tiny_cpu", "run_dir=/r", **slurm(stage, BUSY="20"))
    assert (code, errors) == (0, "")
    calls = stage.calls()
    assert calls[0] == "scontrol show hostnames node[1-2]"
    waited, ran = (
        "python launch/wait_for_nodes.py localhost:22345 2 600",
        "python -m capo_ray.launch cluster.address=localhost:22345 +experiment=tiny_cpu run_dir=/r",
    )
    assert sorted(calls[1:-1]) == sorted(
        [  # Ray and the run start side by side
            waited,
            ran,
            "ray start --head --port=22345 --disable-usage-stats --block",
            "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none launch/node.sh",
        ]
    )
    assert calls.index(waited) < calls.index(ran)
    assert calls[-1] == "ray ended"


def test_slurm_ends_as_the_run_does(stage: Stage) -> None:
    assert stage.run("slurm.sh", "+experiment=tiny_cpu", **slurm(stage, BUSY="10", CODE="2"))[0] == 2


@pytest.mark.parametrize(
    ("sent", "said", "then"),
    [
        (signal.SIGUSR1, "slurm.sh: out of time; queued again\n", ["scontrol requeue 12345"]),
        (signal.SIGTERM, "", []),
    ],
    ids=["out of time", "cancelled"],
)
def test_slurm_stops_the_run(stage: Stage, sent: signal.Signals, said: str, then: list[str]) -> None:
    """It is given the time that it takes. What ran out of time is queued again, what was cancelled is not."""
    job = stage.start("slurm.sh", "+experiment=tiny_cpu", **slurm(stage, BUSY="1000"))
    stage.wait_for("python -m capo_ray.launch")
    stage.wait_for("ray start")
    job.send_signal(sent)
    _, errors = job.communicate(timeout=30)
    assert (job.returncode, errors) == (130, said)
    assert stage.calls()[-2 - len(then) :] == ["python stopped", *then, "ray ended"]


def test_slurm_without_ray(stage: Stage) -> None:
    """A Ray that ends is told, and the run does not go on without it."""
    (stage.folder / ".venv" / "bin" / "srun").write_text("#!/bin/bash\nexit 7\n")
    code, errors = stage.run("slurm.sh", "+experiment=tiny_cpu", **slurm(stage, BUSY="1000"))
    assert (code, errors) == (7, "slurm.sh: Ray ended before the run; its own lines are above\n")
    assert not any(line.split()[0] == "ray" for line in stage.calls())


def test_slurm_options_are_those_of_the_page() -> None:
    options = re.findall(r"^#SBATCH (.+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--ntasks-per-node=1", "--requeue", "--signal=B:USR1@300"} <= set(options)


def test_nodes_that_do_not_come() -> None:
    """Nothing listens: not one node is there, and that is said."""
    done = subprocess.run(
        [sys.executable, str(LAUNCH / "wait_for_nodes.py"), "127.0.0.1:9", "2", "0"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "only 0 of 2 nodes joined 127.0.0.1:9 within 0 s; look at what launch/node.sh printed on the others"
    )
