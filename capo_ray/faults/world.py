"""A disk, a network and a share of memory of a run's own, which can fail without anybody else noticing.

Linux namespaces: the program goes on as itself in new ones (`enter`), where it may mount and where the loopback device
is its own; nothing is left when it has ended. Needs `unshare` and `ip`, `tc` for lost packets, and for memory a control
group that it may write, which root has. Leaves out what a run promises then (kinds).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

INSIDE = "CAPO_RAY_FAULTS_WORLD"
DISK_MIB = 512
"""Three checkpoints of a tiny policy, and the logs of some restarts."""
FREE_KIB = 64
"""What is left of a disk that is full."""
RATE = "3mbit"
"""At which packets pass while some are dropped: below what weights and batches take at once."""
GROUPS = Path("/sys/fs/cgroup/memory")
GIB = 1 << 30
TAKEN = 0.96
"""Of a limit; Ray ends actors above 0.95."""
LEAST_FREE_GIB = 4.0
"""That stays free on the machine while memory is taken."""


def why_not() -> str:
    """Why there can be no such world here; empty where there can."""
    for program in ("unshare", "ip", "tc"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run(["unshare", "-rmn", "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return " ".join(tried.stderr.split()) if tried.returncode else ""


def enter(arguments: Sequence[str]) -> None:
    """Go on as `python -m capo_ray.faults` with these arguments in a world of its own; returns when in there."""
    if INSIDE in os.environ:
        os.environ.pop(INSIDE)
        _do("ip", "link", "set", "lo", "up")
        _do("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")  # whose files in there are this run's
        return
    command = ["unshare", "-rmn", sys.executable, "-m", "capo_ray.faults", *arguments]
    sys.stdout.flush()
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout


@contextmanager
def disk(folder: Path, *, mib: int = DISK_MIB) -> Iterator[None]:
    """`folder` is a disk of its own; what is on it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    _do("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        _do("umount", "--lazy", str(folder))


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nearly nothing is left on the disk that has this folder."""
    filler = disk / ".filler"
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while (left := shutil.disk_usage(disk).free - FREE_KIB * 1024) > 0:
                file.write(bytes(min(left, 1 << 20)))
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    _do("mount", "--bind", str(folder), str(folder))
    _do("mount", "-o", "remount,ro,bind", str(folder))
    try:
        yield
    finally:
        _do("umount", "--lazy", str(folder))


@contextmanager
def no_network() -> Iterator[None]:
    """Nothing that is sent arrives, from this machine to itself either."""
    _do("ip", "link", "set", "lo", "down")
    try:
        yield
    finally:
        _do("ip", "link", "set", "lo", "up")


@contextmanager
def lost_packets() -> Iterator[None]:
    """What comes faster than RATE is dropped, once a short queue is full."""
    _do("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", RATE, "burst", "128k", "limit", "128k")
    try:
        yield
    finally:
        _do("tc", "qdisc", "del", "dev", "lo", "root")


def dropped_packets() -> int:
    """Since `lost_packets` began."""
    words = _do("tc", "-s", "qdisc", "show", "dev", "lo").replace(",", " ").split()
    return int(words[words.index("(dropped") + 1]) if "(dropped" in words else 0


class Memory:
    """A limit for a run and all that it starts, and the means to take what the run leaves of it."""

    def __init__(self, *, gib: float) -> None:
        """Raises OSError where there is no such thing here, and leaves nothing behind."""
        self._folder = GROUPS / own_group() / f"capo_ray-faults-{os.getpid()}"
        self._folder.mkdir()
        self._gib, self._most = gib, int(TAKEN * gib * GIB)
        try:
            (self._folder / "memory.limit_in_bytes").write_text(str(int(gib * GIB)))
            _do("mount", "--bind", str(self._folder), str(GROUPS))  # where Ray looks for its limit
        except OSError:
            self._folder.rmdir()
            raise

    def holds(self, pid: int) -> None:
        """`pid` and what it starts from now on."""
        (GROUPS / "cgroup.procs").write_text(str(pid))

    @property
    def can_be_taken(self) -> bool:
        """Whether the machine has so much beside what others need."""
        used = int((GROUPS / "memory.usage_in_bytes").read_text())
        free = psutil.virtual_memory().available
        return self._gib * GIB - used < free - LEAST_FREE_GIB * GIB

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A program that belongs to it asks for memory until Ray's own limit is passed, and is gone two seconds later,
        so that who was ended for it can start again."""
        hog = subprocess.Popen([sys.executable, "-c", _HOG, str(GROUPS / "memory.usage_in_bytes"), str(self._most)])
        self.holds(hog.pid)
        try:
            yield
        finally:
            hog.kill()
            hog.wait()

    def close(self) -> None:
        _do("umount", "--lazy", str(GROUPS))
        for _ in range(20):
            with suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.2)


_HOG = """
import sys, time
held = []
while int(open(sys.argv[1]).read()) < int(sys.argv[2]):
    held.append(bytearray(b"x") * (16 << 20))
    time.sleep(0.005)
time.sleep(2)
"""


def own_group() -> str:
    """Of control groups for memory, the one that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return path.lstrip("/")
    raise OSError("no control group for memory (cgroup v1) here")
