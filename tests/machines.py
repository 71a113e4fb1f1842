"""Machines of a Ray cluster as network namespaces of this one, on a switch whose cables can be pulled.

Needs the right to make namespaces (root, or CAP_NET_ADMIN). Each has an address and links of its own; files and cores
are shared.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
STORE = 200 << 20
"""Bytes of a node's object store."""
PORT = 6379
GRACE_S = 60
"""That a machine which is told to go stays at most."""
PATIENT = {"RAY_grpc_keepalive_timeout_ms": "60000", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(GRACE_S)}
"""As launch/node.sh starts Ray."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def refused() -> str:
    """Why no namespace can be made here; empty where one can."""
    name = f"capo-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except FileNotFoundError:
        return "there is no program `ip` (Debian's package iproute2)"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    return ""


class Machines:
    """The switch, this machine with the head at `head`, and those that were added."""

    def __init__(self) -> None:
        self._mark = f"c{os.getpid() % 10_000}"
        self._net = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._names: list[str] = []
        self.head = f"{self._net}.1"
        self.address = f"{self.head}:{PORT}"

    def open(self) -> None:
        ip("link", "add", self._mark, "type", "bridge")
        ip("addr", "add", f"{self.head}/24", "dev", self._mark)
        ip("link", "set", self._mark, "up")
        self._start("head", [], "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", at=self.head)
        self._wait_for_head()

    def add(self, *, cpus: int = 1) -> str:
        """Another machine, on which Ray starts; its name."""
        name = f"{self._mark}n{len(self._names) + 2}"
        here = f"{self._net}.{len(self._names) + 2}"
        ip("netns", "add", name)
        self._names.append(name)
        ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"{name}v", "master", self._mark, "up")
        for inside in (f"addr add {here}/24 dev eth0", "link set eth0 up", "link set lo up"):
            ip("netns", "exec", name, "ip", *inside.split())
        self._join(name, cpus)
        return name

    def _join(self, name: str, cpus: int) -> None:
        here = f"{self._net}.{self._names.index(name) + 2}"
        self._start(name, ["ip", "netns", "exec", name], f"--address={self.address}", f"--num-cpus={cpus}", at=here)
        self._wait_for(here)

    def _start(self, name: str, inside: list[str], *options: str, at: str) -> None:
        with suppress(KeyError):
            self._nodes.pop(name).wait(30)
        self._nodes[name] = subprocess.Popen(
            [*inside, RAY, "start", f"--node-ip-address={at}", f"--object-store-memory={STORE}", "--block", *options],
            env={
                **os.environ,
                **PATIENT,
                "RAY_USAGE_STATS_ENABLED": "0",
                "GLOO_SOCKET_IFNAME": "eth0" if inside else self._mark,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_for(self, here: str) -> None:
        """Until the head counts the machine at `here` among those that are there."""
        from ray._raylet import GcsClient

        for _ in range(120):
            nodes = GcsClient(address=self.address).get_all_node_info().values()
            if any(node.node_manager_address == here and node.state == 0 for node in nodes):
                return
            time.sleep(0.5)
        raise TimeoutError(f"the machine at {here} did not join")

    def _wait_for_head(self) -> None:
        import socket

        for _ in range(120):
            with suppress(OSError):
                socket.create_connection((self.head, PORT), timeout=1).close()
                return
            time.sleep(0.5)
        raise TimeoutError("Ray's head did not start")

    def pull(self, name: str) -> None:
        """The cable of a machine: it is up, and reaches nobody."""
        ip("link", "set", f"{name}v", "nomaster")

    def plug(self, name: str) -> None:
        ip("link", "set", f"{name}v", "master", self._mark)

    def tell_to_go(self, name: str) -> None:
        """SIGTERM to what was started there, as when a pod or a machine is taken away."""
        self._nodes[name].terminate()

    def has_ended(self, name: str) -> bool:
        """Within what is left of its time."""
        with suppress(subprocess.TimeoutExpired):
            self._nodes[name].wait(GRACE_S)
        return self._nodes[name].poll() is not None

    def come_back(self, name: str, *, cpus: int = 1) -> None:
        """One that was lost or has gone."""
        self._join(name, cpus)

    def actors(self, name: str) -> list[str]:
        """What Ray's processes on a machine call themselves."""
        titles = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in self._inside(name)]
        return [title for title in titles if title.startswith("ray::") and "IDLE" not in title]

    def kill(self, name: str) -> None:
        """As when the power fails."""
        with suppress(ProcessLookupError):
            os.killpg(self._nodes[name].pid, signal.SIGKILL)
        for pid in self._inside(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._nodes[name].wait(30)

    def _inside(self, name: str) -> list[int]:
        if name not in self._names:
            return []
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        return [int(pid) for pid in found.split()]

    def close(self) -> None:
        """All at once: told to end, a worker would look for its head for as long as it has."""
        for name in self._nodes:
            self.kill(name)
        for name in self._names:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", self._mark)


@contextmanager
def machines() -> Iterator[Machines]:
    made = Machines()
    try:
        made.open()
        yield made
    finally:
        made.close()
