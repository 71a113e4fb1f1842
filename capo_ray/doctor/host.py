"""Has this machine the room: shared memory, disk, open files, ports, a name.

Leaves out cores, memory and GPUs, which the plan counts (`wanted.room`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from capo_ray.config.model import Shape
from capo_ray.config.run import Config
from capo_ray.doctor.finding import Finding, fail, ok, warn
from capo_ray.planning.estimate import sent
from capo_ray.planning.memory import BYTES, GIB, checkpoint_gib, learning

DASHBOARD_PORT = 8265
STORE_SHARE = 0.3
"""Of the memory that Ray takes for its object store unless told otherwise."""
SPARE_GIB = 2.0
"""Disk for logs, samples and the ledger of a run."""
FULL = 0.95
"""Used share of the disk from which Ray refuses to spill objects."""
LEAST_FILES = 8192


def weights_gib(config: Config, numbers: float) -> float:
    return numbers * BYTES[config.policy.dtype] / GIB


def shared_memory(
    config: Config, shape: Shape | None, *, total_gib: float, free_gib: float, memory_gib: float
) -> Finding:
    """/dev/shm holds Ray's object store and, on CPU, the weights under way."""
    moved = weights_gib(config, sent(config, shape)) if shape and config.cluster.weight_transfer == "shm" else 0.0
    shown = f"{free_gib:.1f} of {total_gib:.1f} GiB free"
    fix = "give it more: docker run --shm-size=16g, a volume in memory (Kubernetes), mount -o remount,size=16g /dev/shm"
    if free_gib < 2 * moved:
        return fail("/dev/shm", f"{shown}; weights under way take {2 * moved:.1f}", fix)
    store = config.cluster.object_store_gib or STORE_SHARE * memory_gib
    if config.cluster.address is None and free_gib < store + 2 * moved:
        fix += "; or lower cluster.object_store_gib"
        return warn("/dev/shm", f"{shown}; an object store of {store:.1f} would go to the disk and be slow", fix)
    return ok("/dev/shm", shown)


def run_disk(config: Config, shape: Shape | None, run_dir: Path, *, total_gib: float, free_gib: float) -> Finding:
    """Room for checkpoints. One more than are kept stands there while it is written."""
    each = checkpoint_gib(config, shape) if shape else 0.0
    kept = config.checkpoints_at_once * each
    models = config.models_written * weights_gib(config, learning(config.trainer, shape)) if shape else 0.0
    shown = f"{free_gib:.0f} of {total_gib:.0f} GiB free at {run_dir}"
    fix = "free some, or set run_dir to a larger disk"
    if free_gib < each + SPARE_GIB:
        return fail("disk", f"{shown}; one checkpoint takes {each:.1f} and the rest of a run {SPARE_GIB:g}", fix)
    if free_gib < kept + models + SPARE_GIB:
        held = f"{config.checkpoints_at_once - 1} checkpoints and the one being written take {kept:.0f}"
        held += f", models {models:.0f}" if config.export_every else ""
        return warn("disk", f"{shown}; {held}", f"{fix}; or lower keep_checkpoints, or keep_best=null")
    return ok("disk", f"{shown}; checkpoints take {kept:.1f}")


def ray_disk(folder: Path, *, total_gib: float, free_gib: float) -> Finding:
    """Where Ray keeps its sessions and spills objects."""
    used = 1 - free_gib / total_gib
    shown = f"{free_gib:.0f} of {total_gib:.0f} GiB free at {folder}"
    if used > FULL:
        return warn(
            "temporary disk",
            f"{shown}: above {FULL:.0%} Ray spills nothing",
            "free some, or set TMPDIR to a larger disk",
        )
    return ok("temporary disk", shown)


def open_files(limit: int) -> Finding:
    """`limit`: of this process, at most; -1 is none."""
    if 0 <= limit < LEAST_FILES:
        return warn(
            "open files", f"at most {limit}", f"ulimit -n {LEAST_FILES} (or nofile in limits.conf) before starting"
        )
    return ok("open files", "no limit" if limit < 0 else f"at most {limit}")


def ports(config: Config, taken: Callable[[int], bool]) -> Finding:
    """Those that a Ray started for this run would like. None is needed for a cluster that is joined."""
    if config.cluster.address is not None:
        return ok("ports", "the cluster's own")
    if config.cluster.dashboard and taken(DASHBOARD_PORT):
        return warn(
            "ports",
            f"{DASHBOARD_PORT} is taken: the dashboard of this run goes to another port",
            "end the Ray that is there (ray stop), or join it with cluster.address=auto",
        )
    return ok("ports", f"{DASHBOARD_PORT} is free" if config.cluster.dashboard else "none needed")


def is_taken(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def host_name(*, joins: bool, resolve: Callable[[str], str] = socket.gethostbyname, name: str = "") -> Finding:
    """Processes find each other by the address that this machine's name has. `joins`: on other machines too."""
    name = name or socket.gethostname()
    try:
        address = resolve(name)
    except OSError as error:
        return warn("host name", f"{name} has no address: {error}", f"add a line `ADDRESS {name}` to /etc/hosts")
    if joins and address.startswith("127."):
        return warn(
            "host name",
            f"{name} is {address}, which on other machines are they themselves",
            f"give {name} its own address in /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
    return ok("host name", f"{name} is {address}")


def interfaces(folder: Path = Path("/sys/class/net")) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ()
