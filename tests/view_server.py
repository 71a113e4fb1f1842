"""`python -m capo_ray.view` as a process, for tests of its pages."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from capo_ray.engines.ports import free_port

ROOT = Path(__file__).resolve().parents[1]


def view(*arguments: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI"))}
    return subprocess.Popen(
        [sys.executable, "-m", "capo_ray.view", *map(str, arguments)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextmanager
def serving(run_dir: Path) -> Iterator[str]:
    """Address of a server, which is ended with the block."""
    port = free_port()
    process = view(run_dir, f"port={port}")
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(rf"{re.escape(str(run_dir))}: (http://127\.0\.0\.1:{port}) \(Ctrl-C ends it\)\n", line)
        assert found, (line, process.stderr.read() if process.stderr else "")
        end = monotonic() + 60
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            assert monotonic() < end
            sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(timeout=30)
