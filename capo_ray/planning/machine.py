"""What stands on this machine: cores, memory, GPUs, and the shapes of models whose files are here.

And whether a cluster answers from here. Reads /proc, nvidia-smi and JSON; imports no engine. Leaves out what a run
needs (plan).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from capo_ray.config.blocks import Cluster
from capo_ray.config.model import Model, Shape
from capo_ray.models.files import count_weights, read_decoder
from capo_ray.models.find import folder_here

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is for a run."""

    cpus: float
    gpus: int
    memory_gib: float
    gpu_gib: float = 0.0
    """Memory of the smallest GPU; 0 without any."""
    nodes: tuple[dict[str, float], ...] = ()
    """Of a cluster: what each node has, by Ray's names of resources."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPUs of {self.gpu_gib:.0f} GiB" if self.gpus else "no GPU"
        return f"{self.cpus:g} cores, {self.memory_gib:.1f} GiB of memory, {gpus}"


def why_silent(address: str) -> str:
    """Why nothing answers at HOST:PORT; empty where something does, or where there is no port to knock at (`auto`).

    Asked before Ray is, which waits for minutes and then ends the whole program.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return ""
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        return str(error)
    return ""


def this_machine(cluster: Cluster) -> Machine:
    """What a Ray that is started here would offer."""
    sizes = gpu_sizes()
    return Machine(
        cpus=cluster.cpus or len(os.sched_getaffinity(0)),
        gpus=len(sizes),
        memory_gib=_memory_gib(),
        gpu_gib=min(sizes, default=0.0),
    )


def gpu_sizes() -> list[float]:
    """GiB of each GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    sizes = [float(line) / 1024 for line in done.stdout.split("\n") if line.strip().replace(".", "").isdigit()]
    return sizes if visible is None else sizes[: len(visible.split(","))]


def _memory_gib() -> float:
    """Of the machine, or of the container where that is less."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            pages = min(pages, int(limit) / GIB)
    return pages


def shape_of(model: Model) -> Shape | None:
    """The shape that the configuration names, or that of the files where they are here; None where neither is. Raises
    ConfigError for files that describe no model."""
    if model.shape is not None:
        return model.shape
    folder = folder_here(model.path)
    if not (folder / "config.json").is_file():
        return None
    decoder = read_decoder(folder)
    return Shape(
        parameters=max(1, count_weights(folder)),
        layers=decoder.layers,
        hidden_size=decoder.hidden_size,
        key_value_size=decoder.key_value_size,
        vocabulary=decoder.vocabulary,
        window=decoder.window,
    )
