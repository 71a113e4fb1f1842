"""Are the GPUs what a run needs: there, free, new enough, their driver too; and does NCCL find its network.

Asks nvidia-smi, not CUDA. Leaves out how many a run needs (plan, through `wanted.room`).
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capo_ray.config.run import Config
from capo_ray.doctor.finding import Finding, fail, ok, warn

QUERY = ("index", "name", "memory.total", "memory.used", "driver_version", "compute_cap")
LEAST_DRIVER = 580
"""CUDA 13's, for which torch and vLLM of requirements/gpu.lock are built."""
LEAST_BFLOAT16 = 8.0
"""Compute capability from which GPUs reckon in bfloat16."""
BUSY_GIB = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as nvidia-smi sees it."""

    index: str
    name: str
    total_gib: float
    used_gib: float
    driver: str
    capability: float
    """0 where the driver does not say."""


def gpus_here() -> tuple[list[Gpu], str]:
    """The GPUs that this process may use, and what nvidia-smi said where it failed."""
    if shutil.which("nvidia-smi") is None:
        return [], "there is no nvidia-smi"
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        return [], f"nvidia-smi: {said.splitlines()[0]}"
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if len(row) == len(QUERY)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and all(part.strip().isdigit() for part in visible.split(",")):
        rows = [row for row in rows if row[0] in [part.strip() for part in visible.split(",")]]
    elif visible in ("", "-1"):
        return [], f"CUDA_VISIBLE_DEVICES={visible!r} hides them"
    return [_gpu(row) for row in rows], ""


def _gpu(row: Sequence[str]) -> Gpu:
    index, name, total, used, driver, capability = row
    return Gpu(
        index=index,
        name=name,
        total_gib=_number(total) / 1024,
        used_gib=_number(used) / 1024,
        driver=driver,
        capability=_number(capability),
    )


def _number(text: str) -> float:
    """0 for [N/A], which some machines answer."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def gpus(config: Config, there: Sequence[Gpu], trouble: str) -> Finding:
    """What there is, and whether it is free and can do what this run asks."""
    if not there:
        if config.cluster.device == "cpu":
            return ok("gpus", "none, and this experiment needs none")
        return fail(
            "gpus",
            f"none: {trouble or 'nvidia-smi lists none'}",
            "install NVIDIA's driver, or start the container with --gpus all; or join a cluster: cluster.address=auto",
        )
    kinds = " + ".join(
        f"{sum(gpu.name == name for gpu in there)} x {name}" for name in dict.fromkeys(gpu.name for gpu in there)
    )
    shown = f"{kinds}, {min(gpu.total_gib for gpu in there):.0f} GiB"
    if config.cluster.device == "cpu":
        return ok("gpus", f"{shown}; this experiment uses none")
    old = [gpu for gpu in there if 0 < gpu.capability < LEAST_BFLOAT16]
    if old and config.policy.dtype == "bfloat16":
        return fail(
            "gpus",
            f"{shown}; {old[0].name} (compute capability {old[0].capability}) has no bfloat16",
            f"use GPUs of compute capability {LEAST_BFLOAT16} or above (A100 and later), or policy.dtype=float32",
        )
    if busy := [gpu for gpu in there if gpu.used_gib > BUSY_GIB]:
        taken = ", ".join(f"GPU {gpu.index} {gpu.used_gib:.0f} GiB" for gpu in busy)
        return warn("gpus", f"{shown}; in use: {taken}", "end what runs there (nvidia-smi names it), or wait for it")
    return ok("gpus", shown)


def driver(config: Config, there: Sequence[Gpu]) -> Finding:
    if not there:
        return ok("driver", "no GPU here")
    version = there[0].driver
    major = int(_number(version.split(".")[0]))
    if config.cluster.device == "gpu" and major < LEAST_DRIVER:
        return fail(
            "driver",
            f"{version}; the CUDA 13 of requirements/gpu.lock wants {LEAST_DRIVER} or above",
            f"update NVIDIA's driver to {LEAST_DRIVER} or above",
        )
    return ok("driver", version)


def nccl(
    config: Config, there: Mapping[str, str], environment: Mapping[str, str], interfaces: Sequence[str]
) -> Finding:
    """The library, and the network interface that the environment names. `there`: installed packages."""
    gpu = config.cluster.device == "gpu"
    name, what = ("NCCL_SOCKET_IFNAME", "NCCL") if gpu else ("GLOO_SOCKET_IFNAME", "gloo")
    asked = environment.get(name, "")
    wanted = [] if asked.startswith("^") else [part.lstrip("=") for part in asked.split(",") if part]
    if wanted and not any(one.startswith(part) for one in interfaces for part in wanted):
        return fail(
            "nccl",
            f"{name}={asked}, and the interfaces here are {', '.join(interfaces) or 'none'}",
            f"set {name} to the interface between the nodes, or unset it",
        )
    if not gpu:
        return ok("nccl", f"not used; {what} on {asked or 'the interface of the host name'}")
    library = next((f"{p} {v}" for p, v in there.items() if p.startswith("nvidia-nccl")), None)
    if library is None:
        return fail("nccl", "the library is not installed", "pip install --no-deps -r requirements/gpu.lock")
    if off := [key for key in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE") if environment.get(key) == "1"]:
        slow = f"{library}; {' and '.join(off)} slows weight sync"
        return warn("nccl", slow, f"unset {' '.join(off)} if it is not needed")
    return ok("nccl", f"{library}; {asked or 'any interface'}{', InfiniBand' if infiniband() else ''}")


def infiniband(folder: Path = Path("/sys/class/infiniband")) -> bool:
    return folder.is_dir() and any(folder.iterdir())
