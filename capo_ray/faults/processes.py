"""The processes of a run, as the system sees them: which is which, frozen, slowed down, what memory is their own.

Leaves out whose turn it is (plan) and what is to follow (strike).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

MIB = 1 << 20
PARTS = (
    ("rollout engine", "VLLM::", "RolloutActor"),
    ("critic engine", "VLLM::", "CriticActor"),
    ("rollout worker", "RolloutActor", ""),
    ("critic", "CriticActor", ""),
    ("aggregator", "AggregatorActor", ""),
    ("trainer rank", "TrainerActor", ""),
    ("raylet", "raylet", ""),
    ("Ray's head", "gcs_server", ""),
    ("wandb", "wandb-core", ""),
)
"""What a process is, what is in its name, and in that of its parent."""


def find(root: int, *names: str) -> list[psutil.Process]:
    """The first process below `root` with the first of `names` in its name, the first below that with the second, and
    so on; empty where there is none."""
    return next(iter(all_of(root, *names)), [])


def all_of(root: int, *names: str) -> list[list[psutil.Process]]:
    """As `find`, each of them, by process id."""
    chains: list[list[psutil.Process]] = [[]]
    for name in names:
        chains = [
            [*chain, child]
            for chain in chains
            for child in sorted(_below(chain[-1].pid if chain else root), key=lambda one: one.pid)
            if name in name_of(child)
        ]
    return chains


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def name_of(process: psutil.Process) -> str:
    """Empty where it has ended, which one that nobody has reaped has too, and where it stands still: a fault is not
    done twice to who was given up and not ended."""
    try:
        gone = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        return "" if gone else process.name()
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def slow(process: psutil.Process) -> Iterator[None]:
    """It runs for a tenth of the time."""
    ended = threading.Event()

    def hold() -> None:
        with suppress(psutil.NoSuchProcess):
            while not ended.wait(0.1):
                process.suspend()
                time.sleep(0.9)
                process.resume()

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        yield
    finally:
        ended.set()
        holding.join()
        with suppress(psutil.NoSuchProcess):
            process.resume()


def own_memory(root: int) -> dict[tuple[str, int], float]:
    """(part, process id) -> MiB that nobody shares with it, of the program at `root` and of what belongs to it."""
    found: dict[tuple[str, int], float] = {}
    for process in [psutil.Process(root), *_below(root)] if psutil.pid_exists(root) else []:
        with suppress(psutil.Error):
            part = "driver" if process.pid == root else _part(process)
            if part:
                found[part, process.pid] = process.memory_full_info().uss / MIB
    return found


def _part(process: psutil.Process) -> str:
    name = name_of(process)
    for part, own, above in PARTS:
        if re.search(own, name):
            parent = process.parent() if above else None
            if not above or (parent is not None and above in name_of(parent)):
                return part
    return ""
