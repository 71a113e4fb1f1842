"""What the processes of a run cost: time on the core, and the bytes that Ray packs in them.

Leaves out what they do (pipeline).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil


@dataclass(slots=True)
class Look:
    """At all processes, at one moment."""

    at: float
    cpu: dict[str, float]
    packed: dict[str, int]
    machine: tuple[float, float]
    """Seconds of all cores: busy, and altogether."""

    @classmethod
    def take(cls, pids: Mapping[str, Sequence[int]], folder: Path) -> Look:
        pids = {
            **pids,
            "verifiers": [child.pid for of in pids["aggregator"] for child in psutil.Process(of).children()],
        }
        times = psutil.cpu_times()
        whole = sum(times) - times.guest - times.guest_nice
        return cls(
            perf_counter(),
            {role: sum(map(cpu_of, of)) for role, of in pids.items()},
            {role: sum(packed_by(folder, pid) for pid in of) for role, of in pids.items()},
            (whole - times.idle - times.iowait, whole),
        )


def cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def counted(folder: Path, factory: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What `factory` makes, in a process that counts from now on the bytes that Ray packs in it."""
    count_packed(folder)
    return factory(*given, **named)


def count_packed(folder: Path) -> None:
    """Keep in FOLDER/PID the bytes of all arguments, results and objects that this process has packed."""
    from ray._private.serialization import SerializationContext

    path = folder / str(os.getpid())
    path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        total = mmap.mmap(file.fileno(), 8)
    before = SerializationContext.serialize

    def serialize(self: Any, value: Any) -> Any:
        packed = before(self, value)
        struct.pack_into("q", total, 0, struct.unpack_from("q", total)[0] + packed.total_bytes)
        return packed

    SerializationContext.serialize = serialize


def packed_by(folder: Path, pid: int) -> int:
    """Bytes that process has packed since it began to count."""
    path = folder / str(pid)
    return int(struct.unpack("q", path.read_bytes())[0]) if path.is_file() else 0
