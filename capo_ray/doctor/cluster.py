"""Is a cluster that is to be joined what the run needs: reachable, whole, the same software on every node, one disk.

Leaves out asking the nodes (capo_ray.cluster.nodes) and this machine's own state (host, gpus).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from capo_ray.config.run import Config
from capo_ray.doctor.finding import Finding, fail, listed, ok, warn
from capo_ray.doctor.gpus import LEAST_DRIVER, gpus_here
from capo_ray.doctor.software import ENGINES, installed
from capo_ray.planning.machine import GIB, Machine, why_silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node says of itself."""

    python: str
    versions: dict[str, str]
    """Of the engines that are installed there."""
    gpu_gib: float
    """Memory of its smallest GPU; 0 without any."""
    driver: str
    unseen: tuple[str, ...]
    """Paths that the run needs and this node does not see."""
    gpus: int = 0
    cpus: int = 0


def look_at_node(paths: tuple[str, ...]) -> Node:
    """Runs on the node that is asked."""
    there = gpus_here()[0]
    return Node(
        python=".".join(map(str, sys.version_info[:3])),
        versions={name: version for name, version in installed().items() if name in ENGINES},
        gpu_gib=min((gpu.total_gib for gpu in there), default=0.0),
        driver=there[0].driver if there else "",
        unseen=tuple(path for path in paths if not Path(path).exists()),
        gpus=len(there),
        cpus=os.cpu_count() or 1,
    )


def cluster(config: Config, run_dir: Path, folders: list[str]) -> tuple[Machine | None, list[Finding]]:
    """What the cluster offers as one machine, and what is to be said of it. `folders`: what the run reads.

    The machine is None where no cluster answers.
    """
    assert config.cluster.address is not None
    if trouble := unreachable(config.cluster.address):
        return None, [trouble]
    from capo_ray.cluster.nodes import ask_every_node

    marker = _marker(run_dir)
    paths = (*folders, *([str(marker)] if marker else []))
    try:
        answers, resources = ask_every_node(config.cluster.address, partial(look_at_node, paths))
    except (ConnectionError, ValueError, RuntimeError) as error:
        return None, [no_cluster(config.cluster.address, str(error).strip().splitlines()[0])]
    finally:
        if marker:
            marker.unlink(missing_ok=True)
    nodes = {name: answer for name, answer in answers.items() if isinstance(answer, Node)}
    silent = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    machine = Machine(
        cpus=resources.get("CPU", 0),
        gpus=int(resources.get("GPU", 0)),
        memory_gib=resources.get("memory", 0) / GIB,
        gpu_gib=min((node.gpu_gib for node in nodes.values() if node.gpu_gib), default=0.0),
        nodes=tuple({"GPU": node.gpus, "CPU": node.cpus} for node in nodes.values()) if not silent else (),
    )
    found = [answering(nodes, silent, machine), same_software(nodes), drivers(nodes)]
    return machine, [*found, seen_everywhere(nodes, marker, folders)]


def _marker(run_dir: Path) -> Path | None:
    """A file beside the run's directory, to see whether other nodes see it; None where it cannot be written."""
    parent = next(path for path in (run_dir, *run_dir.parents) if path.is_dir())
    marker = parent / f".capo_ray-doctor-{uuid.uuid4().hex[:8]}"
    try:
        marker.touch()
    except OSError:
        return None
    return marker


def unreachable(address: str) -> Finding | None:
    """Where nothing can be asked: Ray is not installed, or nothing listens there."""
    if importlib.util.find_spec("ray") is None:
        return fail("cluster", "Ray is not installed, so none can be joined", "pip install 'ray[default]==2.60.0'")
    reason = why_silent(address)
    return no_cluster(address, reason) if reason else None


def no_cluster(address: str, reason: str) -> Finding:
    return fail(
        "cluster",
        f"none at {address}: {reason}",
        "start Ray on its nodes, see that port 6379 of the head is open from here: docs/launch.md",
    )


def answering(nodes: Mapping[str, Node], silent: Mapping[str, str], machine: Machine) -> Finding:
    shown = f"{len(nodes)} nodes: {machine.cpus:g} cores, {machine.gpus} GPUs"
    if silent:
        name, reason = next(iter(silent.items()))
        return fail(
            "cluster",
            f"{len(silent)} of {len(nodes) + len(silent)} nodes do not answer: {name}: {reason}",
            "install the same environment on every node; the node's /tmp/ray/session_latest/logs say more",
        )
    return ok("cluster", shown)


def same_software(nodes: Mapping[str, Node]) -> Finding:
    """Every node against this one."""
    here = look_at_node(())
    others = {
        name: sorted(
            f"{what} {there.get(what, 'missing')}, not {ours.get(what, 'there')}"
            for what in there.keys() | ours.keys()
            if there.get(what) != ours.get(what)
        )
        for name, node in nodes.items()
        for there, ours in [(node.versions | {"python": node.python}, here.versions | {"python": here.python})]
    }
    if differing := [f"{name}: {', '.join(what)}" for name, what in others.items() if what]:
        return fail("cluster software", f"not as here: {listed(differing, 2)}", "install the same lock on every node")
    return ok("cluster software", "engines and Python as here on every node")


def drivers(nodes: Mapping[str, Node]) -> Finding:
    versions = {node.driver for node in nodes.values() if node.driver}
    old = {name: node.driver for name, node in nodes.items() if node.driver and _major(node.driver) < LEAST_DRIVER}
    if old:
        shown = listed([f"{name} has {version}" for name, version in old.items()])
        return fail("cluster drivers", shown, f"update NVIDIA's driver to {LEAST_DRIVER} or above there")
    if len(versions) > 1:
        return warn("cluster drivers", f"several: {', '.join(sorted(versions))}", "use the same on every node")
    return ok("cluster drivers", next(iter(versions), "no GPU"))


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdigit() else 0


def seen_everywhere(nodes: Mapping[str, Node], marker: Path | None, folders: list[str]) -> Finding:
    """The run's directory and local models must be the same on every node."""
    if marker is None:
        return fail("cluster storage", "run_dir cannot be written to from here", "set run_dir to shared storage")
    blind = {name: node.unseen for name, node in nodes.items() if node.unseen}
    if blind:
        name, paths = next(iter(blind.items()))
        what = [f"run_dir ({marker.parent})" if path == str(marker) else path for path in paths]
        return fail(
            "cluster storage",
            f"{len(blind)} of {len(nodes)} nodes do not see {listed(what)}; first {name}",
            "put run_dir and models on storage that every node mounts at the same path",
        )
    return ok("cluster storage", f"run_dir{' and models' if folders else ''} seen by every node")
