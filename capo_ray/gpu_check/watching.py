"""Runs one part of the check: a process of its own, a limit, a word while it lasts, and an end that leaves nothing.

Whatever a part does, it comes back as an Outcome. Processes are told by a mark in their environment, which those that
leave their process group (Ray's, vLLM's) keep. Leaves out what parts do and how outcomes are shown.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from capo_ray.gpu_check.notes import END, FIGURES, SCRATCH, WORD, Device

State = Literal["ok", "failed", "timeout", "killed", "skipped", "interrupted", "not reached"]
MARK = "CAPO_RAY_GPU_CHECK"
EVERY_S = 10.0
"""Between two words on a part that lasts."""
_POLL_S = 0.2
_TERM_S = 5.0
"""From the polite signal to the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing to be tried. `module` and `function`: what the child calls, with its notes and `options`."""

    name: str
    what: str
    module: str
    function: str
    limit_s: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a part."""

    name: str
    what: str
    state: State
    seconds: float
    limit_s: float
    said: str = ""
    """Why it is not ok."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """As far as it got."""
    log: str = ""
    """Everything that it and its libraries printed."""


def run_part(part: Part, home: Path, device: Device, limit_s: float, say: Callable[[str], None]) -> Outcome:
    """Try `part` for at most `limit_s`, in a folder of its own under `home`. Ends all processes of it, whatever
    happens, Ctrl-C included."""
    folder = home / part.name
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "capo_ray.gpu_check.child", part.module, part.function, device, str(folder)]
    begun = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, json.dumps(dict(part.options))],
            env=environment(device) | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            late = not _wait(process, begun, part, limit_s, folder, say)
        finally:
            end_marked(MARK, mark)
            process.wait()
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    state, said = _timeout(folder, limit_s) if late else _ending(process.returncode, folder)
    return _outcome(part, folder, state, said, seconds=time.monotonic() - begun, limit_s=limit_s)


def interrupted(part: Part, home: Path, seconds: float) -> Outcome:
    """What a part had found by the Ctrl-C that ended it."""
    folder = home / part.name
    said = f"it was at: {_read(folder / WORD) or 'starting'}"
    return _outcome(part, folder, "interrupted", said, seconds=seconds, limit_s=part.limit_s)


def _outcome(part: Part, folder: Path, state: State, said: str, *, seconds: float, limit_s: float) -> Outcome:
    return Outcome(
        name=part.name,
        what=part.what,
        state=state,
        seconds=round(seconds, 1),
        limit_s=round(limit_s, 1),
        said=said,
        figures=json.loads(_read(folder / FIGURES) or "{}"),
        log=str(folder / "log"),
    )


def not_reached(part: Part, minutes: float) -> Outcome:
    return Outcome(
        name=part.name,
        what=part.what,
        state="not reached",
        seconds=0.0,
        limit_s=part.limit_s,
        said=f"{minutes:g} minutes were over; it alone: parts={part.name}",
    )


def environment(device: Device) -> dict[str, str]:
    """Of every process of the check: this package, no network, quiet libraries."""
    checkout = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH", "")
    variables = {
        "PYTHONPATH": os.pathsep.join(path for path in (checkout, inherited) if path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "WANDB_MODE": "offline",
    }
    if device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        variables |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return dict(os.environ) | variables


def _wait(
    process: subprocess.Popen[bytes],
    begun: float,
    part: Part,
    limit_s: float,
    folder: Path,
    say: Callable[[str], None],
) -> bool:
    """Whether it ended within the limit."""
    told = begun
    while process.poll() is None:
        now = time.monotonic()
        if now - begun > limit_s:
            return False
        if now - told >= EVERY_S:
            told = now
            say(f"  {part.name}: {now - begun:.0f} s of at most {limit_s:.0f}; {_read(folder / WORD) or 'starting'}")
        time.sleep(_POLL_S)
    return True


def _timeout(folder: Path, limit_s: float) -> tuple[State, str]:
    return "timeout", f"ended after {limit_s:.0f} s; it was at: {_read(folder / WORD) or 'starting'}"


def _ending(code: int, folder: Path) -> tuple[State, str]:
    at = _read(folder / WORD) or "starting"
    if code < 0:
        return "killed", f"by {signal.Signals(-code).name}; it was at: {at}"
    if end := _read(folder / END):
        told = json.loads(end)
        return told["state"], f"{told['said']}; it was at: {at}" if told["state"] == "failed" else told["said"]
    return "failed", f"exit code {code} without a word; it was at: {at}; see its log"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def end_marked(name: str, value: str, *, first: signal.Signals = signal.SIGTERM) -> None:
    """End every process with `name`=`value` in its environment: by `first`, and by SIGKILL what stays."""
    deadline = time.monotonic() + _TERM_S
    sent: set[int] = set()
    while there := marked(name, value):
        late = time.monotonic() > deadline
        for pid in there if late else there - sent:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else first)
        sent |= there
        if time.monotonic() > deadline + _TERM_S:
            return  # a process in the kernel's hands, such as a driver's, ends when it likes
        time.sleep(0.05)


def marked(name: str, value: str) -> set[int]:
    """Ids of the processes that were started with `name`=`value`, those that only wait to be reaped left out."""
    wanted, found = f"{name}={value}".encode(), set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
        except OSError:
            continue
    return found
