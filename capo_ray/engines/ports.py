"""A port that is free, for what is about to listen on it. Leaves out who listens."""

from __future__ import annotations

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """One on which nothing listens now at `host`; "": at any address of this machine."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
