"""What stays in a process each time that Ray is started in it again, as a run does that lost its session?

    python benchmarks/restarts.py [rounds=6] [actors=3] [calls=100]

Each round is a Ray session with a few actors that are called, and its end; then this process is looked at. MiB are of
anonymous memory, after free memory was given back (pages of libraries are a process's own or not by who else has them
just then); in use is what malloc has lent. The first round loads libraries, so what a restart costs is the mean over
the others. `RAY_enable_open_telemetry=0` before it, or another of Ray's settings, says whose what stays is. Only for
Linux with glibc.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from capo_ray.config.block import Block, setting
from capo_ray.config.blocks import Cluster
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import read_own
from capo_ray.program import run_program

MIB = 1 << 20
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Settings(Block):
    """Of this program."""

    rounds: int = setting("sessions, one after another", 6, gt=1)
    actors: int = setting("of each session", 3, gt=0)
    calls: int = setting("of each actor", 100, gt=0)


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2, over all arenas."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


@dataclass(frozen=True, slots=True)
class Look:
    """At this process."""

    mib: float
    used_mib: float
    objects: int
    threads: int
    files: int

    @classmethod
    def take(cls) -> Look:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = Mallinfo
        gc.collect()
        libc.malloc_trim(0)
        of, this = libc.mallinfo2(), psutil.Process()
        (kib,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        used = (of.uordblks + of.hblkhd) / MIB
        return cls(int(kib) / 1024, used, len(gc.get_objects()), this.num_threads(), this.num_fds())

    def __str__(self) -> str:
        return f"{self.mib:8.1f} {self.used_mib:8.2f} {self.objects:8} {self.threads:8} {self.files:8}"


class Callee:
    async def answer(self, given: bytes) -> bytes:
        return given


def session(given: Settings, logs: Path) -> None:
    import ray

    from capo_ray.cluster.session import ray_session

    async def use(actors: list[Any]) -> None:
        for _ in range(given.calls):
            await asyncio.gather(*(actor.answer.remote(bytes(200)) for actor in actors))

    cluster = Cluster(device="cpu", cpus=given.actors, object_store_gib=0.2, dashboard=False)
    with ray_session(cluster, logs=logs):
        made = ray.remote(Callee).options(num_cpus=0)
        asyncio.run(use([made.remote() for _ in range(given.actors)]))


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    print("round      MiB   in use  objects  threads    files", flush=True)
    looks = []
    with tempfile.TemporaryDirectory(prefix="restarts-") as folder:
        for number in range(1, given.rounds + 1):
            session(given, Path(folder) / "logs")
            looks.append(Look.take())
            print(f"{number:5} {looks[-1]}", flush=True)
    first, last, restarts = looks[0], looks[-1], given.rounds - 1
    grown, used = (last.mib - first.mib) / restarts, (last.used_mib - first.used_mib) / restarts
    print(f"a restart leaves {grown:.2f} MiB, {used:.2f} of them in use")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True))
