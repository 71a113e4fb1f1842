"""A disk, a network and memory that fail for whoever is inside, and for nobody else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from capo_ray.faults import world

INSIDE = """
import os, socket, subprocess, sys, time
from pathlib import Path
from capo_ray.faults import world

def taken(path):
    try:
        path.write_bytes(bytes(1 << 20))
        return True
    except OSError:
        return False

def reached(port, within_s=0.3):
    try:
        socket.create_connection(("127.0.0.1", port), within_s).close()
        return True
    except OSError:
        return False

world.enter([])
folder = Path(sys.argv[1])
with world.disk(folder, mib=8):
    assert taken(folder / "a")
    with world.full(folder):
        assert not taken(folder / "b")
    assert taken(folder / "b")
    with world.read_only(folder / "inner"):
        assert not taken(folder / "inner" / "c") and taken(folder / "b")
    assert taken(folder / "inner" / "c")
listening = socket.create_server(("127.0.0.1", 0))
port = listening.getsockname()[1]
assert reached(port)
with world.no_network():
    assert not reached(port)
assert reached(port)
with world.lost_packets():
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(20):
        sender.sendto(bytes(60_000), ("127.0.0.1", port))
    assert world.dropped_packets() > 0
assert not list(Path("/dev/shm").iterdir())
if Path(world.GROUPS).is_dir():
    memory = world.Memory(gib=1.0)
    assert (world.GROUPS / "memory.limit_in_bytes").read_text().strip() == str(1 << 30)
    waiting = subprocess.Popen(["sleep", "100"])
    memory.holds(waiting.pid)
    usage = world.GROUPS / "memory.usage_in_bytes"
    with memory.taken():
        deadline = time.monotonic() + 20
        while int(usage.read_text()) < 0.96 * (1 << 30):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert int(usage.read_text()) < 1 << 29
    waiting.kill(), waiting.wait()
    memory.close()
print("all of it")
"""


@pytest.fixture(autouse=True)
def _possible() -> None:
    if why := world.why_not():
        pytest.skip(f"faults need a disk and a network of their own: {why}")


def test_what_fails_inside_fails_nobody_outside(tmp_path: Path) -> None:
    def groups() -> set[Path]:
        return set(world.GROUPS.rglob("capo_ray-faults-*"))

    before = groups()
    folder = tmp_path / "disk"
    command = ["unshare", "-rmn", sys.executable, "-c", INSIDE, str(folder)]
    environment = {**os.environ, world.INSIDE: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "all of it\n", done.stderr
    assert list(folder.iterdir()) == []
    assert groups() <= before


def test_why_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert world.why_not() == "unshare is not installed"
