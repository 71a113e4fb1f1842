"""`python -m capo_ray.view` as a program: whom it answers, and how it refuses."""

import socket
from http.client import HTTPConnection
from pathlib import Path

import pytest
from view_run import write_run
from view_server import serving, view

pytestmark = pytest.mark.slow


def test_another_name_that_leads_here_is_refused(tmp_path: Path) -> None:
    """A page of somebody else's cannot read the run through a name of its own (DNS rebinding)."""
    with serving(write_run(tmp_path)) as base:
        address = base.removeprefix("http://")
        for host, status in ((address, 200), ("evil.example", 400)):
            connection = HTTPConnection(address, timeout=60)
            connection.request("GET", "/responses", headers={"Host": host})
            assert connection.getresponse().status == status


def test_a_page_of_another_place_is_refused(tmp_path: Path) -> None:
    """By websocket too, to which a browser's own rules do not apply."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    socket_io = "/_nicegui_ws/socket.io/?EIO=4&transport="
    with serving(write_run(tmp_path)) as base:
        for origin, expected in ((base, (200, 200, 101)), ("http://evil.example", (403, 403, 403))):
            asked = (("/responses", {}), (f"{socket_io}polling", {}), (f"{socket_io}websocket", upgrade))
            statuses = []
            for path, headers in asked:
                connection = HTTPConnection(base.removeprefix("http://"), timeout=60)
                connection.request("GET", path, headers={"Origin": origin, **headers})
                statuses.append(connection.getresponse().status)
                connection.close()
            assert tuple(statuses) == expected, origin


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    process = view(tmp_path / "none")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error == f"error: {tmp_path / 'none'} is not a directory: name the run_dir of a run, such as runs/NAME\n"


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = view(write_run(tmp_path), f"port={port}")
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error == f"error: cannot listen on 127.0.0.1:{port} (Address already in use): try another port=N\n"
