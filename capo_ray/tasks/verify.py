"""Answers verified in child processes that can be killed: one degenerate answer cannot hang or crash a run.

A child that takes too long or dies makes its answer unverifiable, which is not wrong; the next answer gets a new child.
Leaves out what equal means (math).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from capo_ray.tasks.math import decided
from capo_ray.types import Verification

_START_S = 120.0
"""Seconds that a child may take to start; they do not count for the answer that waits for it."""
_ROOT = Path(__file__).resolve().parents[2]


class VerifierError(RuntimeError):
    """The child processes cannot be started."""


class Verifier:
    """A pool of children, started when first needed. Belongs to one event loop; `close` ends the children."""

    def __init__(self, *, processes: int = 1, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._all = [_Child() for _ in range(processes)]
        self._idle: asyncio.LifoQueue[_Child] = asyncio.LifoQueue()
        for child in self._all:
            self._idle.put_nowait(child)

    async def verify(self, gold: str, response: str) -> Verification:
        """Never raises for what an answer says."""
        if (found := decided(gold, response)) is not None:
            return found
        child = await self._idle.get()
        try:
            return await child.ask({"gold": gold, "response": response}, self._timeout_s)
        finally:
            self._idle.put_nowait(child)

    async def close(self) -> None:
        for child in self._all:
            await child.end()


class _Child:
    """One child process; it is either waiting for a task or not there."""

    def __init__(self) -> None:
        self._process: Process | None = None

    async def ask(self, task: dict[str, str], timeout_s: float) -> Verification:
        try:
            process = await self._started()
            return Verification(**await _exchange(process, task, timeout_s))
        except TimeoutError:
            await self.end()
            return Verification(answer="unverifiable", reason=f"verification took longer than {timeout_s:g} s")
        except (EOFError, ConnectionError, ValueError):
            await self.end()
            return Verification(answer="unverifiable", reason="the verifying process died")
        except BaseException:
            await self.end()  # an answer may still be under way: nobody else may read it
            raise

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        paths = [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "capo_ray.tasks.verify_worker",
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        )
        try:
            await _read(self._process, _START_S)
        except (TimeoutError, EOFError) as error:
            raise VerifierError(
                "the process that verifies answers does not start; see why with: "
                f"{sys.executable} -m capo_ray.tasks.verify_worker"
            ) from error
        return self._process

    async def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipes are closed after the loop, noisily


async def _exchange(process: Process, task: dict[str, str], timeout_s: float) -> dict[str, Any]:
    assert process.stdin is not None
    async with asyncio.timeout(timeout_s):
        process.stdin.write(json.dumps(task).encode() + b"\n")
        await process.stdin.drain()
        return await _read(process, None)


async def _read(process: Process, timeout_s: float | None) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(timeout_s):
        line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return dict(json.loads(line))
