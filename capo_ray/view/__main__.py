"""`python -m capo_ray.view RUN_DIR [--host HOST] [--port PORT]`: a web page for looking inside a run.

Of a live run or a finished one, from its files alone: no Ray, no GPU, no network. The server answers this machine only,
unless `--host` says otherwise; whoever reaches it can read the run, and change nothing. Pages of other places cannot,
whatever browser has them open. Code that the run names as its vote is run with `--trust` alone. Exit code 2: there is
no run, or the page cannot be served, and a line says why.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path

from capo_ray.arguments import KeyValues, whole
from capo_ray.view.index import NoRun, check_run
from capo_ray.view.viewer import Viewer

LOOPBACK = ("127.0.0.1", "localhost")
FIRST_LOOK = 0.5
"""Seconds of reading before the page is served; the rest is read beside it."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = KeyValues(prog="python -m capo_ray.view", description="Look inside a run in the browser.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run_dir of a run, live or finished")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=whole(1, 65535), default=8090, help="port to listen on")
    parser.add_argument("--trust", action="store_true", help="run the vote or advantage of the author's own")
    parser.add_argument("--theme", choices=("auto", "light", "dark"), default="auto", help="auto: as the browser wants")
    return parser.parse_args(argv)  # type: ignore[no-any-return]


def check_port(host: str, port: int) -> None:
    """Raises OSError before anything starts, where nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    try:
        check_run(given.run_dir)
        from nicegui import app, ui
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from capo_ray.view.origin import SameOrigin
        from capo_ray.view.page import PATIENCE, add_pages

        check_port(given.host, given.port)
    except NoRun as error:
        print(error, file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"the page needs NiceGUI and pyarrow ({error}): pip install '.[view]' in a checkout", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot listen on {given.host}:{given.port} ({error.strerror}): try another --port", file=sys.stderr)
        return 2
    viewer = Viewer(given.run_dir.resolve(), trust=given.trust)
    viewer.look(FIRST_LOOK)
    add_pages(viewer, dark={"auto": None, "light": False, "dark": True}[given.theme])
    if given.host in LOOPBACK:  # a name of someone else's that leads here is no way in
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_middleware(SameOrigin)
    tasks = []
    app.on_startup(lambda: tasks.append(asyncio.create_task(viewer.watch())))
    print(f"{given.run_dir}: http://{given.host}:{given.port} (Ctrl-C ends it)", flush=True)
    ui.run(
        host=given.host, port=given.port, title=f"{viewer.run_dir.name} · capo_ray", favicon="🔎", dark=None,
        reload=False, show=False, show_welcome_message=False, reconnect_timeout=PATIENCE,
    )  # fmt: skip
    return 0


if __name__ in {"__main__", "__mp_main__"}:
    sys.exit(main())
