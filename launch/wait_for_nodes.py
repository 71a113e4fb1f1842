"""Waits until nodes of a Ray cluster are there: `python wait_for_nodes.py auto 2 600` (address, how many, seconds).

Exit code 1 when they are not. Leaves out whether they are enough for a run, which the run itself says.
"""

from __future__ import annotations

import socket
import sys
import time

import ray

EVERY_S = 30
"""Seconds between two lines about what is waited for."""


def wait(address: str, wanted: int, patience_s: float) -> int:
    """Nodes that are there in the end."""
    begun, told = time.monotonic(), -EVERY_S
    while True:
        there = nodes_of(address)
        waited = int(time.monotonic() - begun)
        if there >= wanted or waited >= patience_s:
            return there
        if waited - told >= EVERY_S:
            print(f"{there} of {wanted} nodes are there, waiting since {waited} s", file=sys.stderr, flush=True)
            told = waited
        time.sleep(2)


def nodes_of(address: str) -> int:
    """0 where Ray does not answer yet."""
    if not listens(address):
        return 0
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError):
        return 0
    return sum(node["Alive"] for node in ray.nodes())


def listens(address: str) -> bool:
    """Asked before Ray is, which ends the whole program when nothing listens."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return True
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def main() -> int:
    try:
        address, wanted, patience_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    except (IndexError, ValueError):
        print("usage: python wait_for_nodes.py ADDRESS NODES SECONDS, as in: auto 2 600", file=sys.stderr)
        return 2
    there = wait(address, wanted, patience_s)
    if there >= wanted:
        return 0
    print(
        f"only {there} of {wanted} nodes joined {address} within {patience_s:g} s; look at what launch/node.sh printed "
        "on the others",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
