"""`python -m capo_ray.view RUN_DIR [key=value ...]`: a web page for looking inside a run.

Of a live run or a finished one, from its files alone: no Ray, no GPU, no network. The server answers this machine only,
unless `host` says otherwise; whoever reaches it can read the run, and change nothing. Pages of other places cannot,
whatever browser has them open. Code that the run names as its vote is run with `trust=true` alone. Exit code 2: there
is no run, or the page cannot be served, and a line says why.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import Literal

from capo_ray.config.block import Block, setting
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.program import run_program
from capo_ray.view.index import NoRun, check_run
from capo_ray.view.viewer import Viewer

LOOPBACK = ("127.0.0.1", "localhost")
FIRST_LOOK = 0.5
"""Seconds of reading before the page is served; the rest is read beside it."""


USAGE = """usage: python -m capo_ray.view RUN_DIR [key=value ...]

A web page for looking inside a run, live or finished, from its files alone. It is served to this machine only, unless
`host` says otherwise; whoever reaches it can read the run, and change nothing.

  python -m capo_ray.view runs/first port=8091
"""


class Settings(Block):
    """Of this program."""

    run_dir: AnyPath = setting("directory of a run, live or finished; RUN_DIR alone is it too")
    host: str = setting("address to listen on", "127.0.0.1")
    port: int = setting("port to listen on", 8090, ge=1, le=65535)
    trust: bool = setting("run code that the run names as its vote or advantage (module:name)", False)
    theme: Literal["auto", "light", "dark"] = setting("auto: as the browser wants", "auto")


def arguments(given: Sequence[str]) -> Settings:
    """Raises ConfigError."""
    return read_own(Settings, given, place="run_dir")


def check_port(host: str, port: int) -> None:
    """Raises OSError before anything starts, where nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings))


def work(told: list[str]) -> int:
    given = arguments(told)
    try:
        check_run(given.run_dir)
        from nicegui import app, ui
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from capo_ray.view.origin import SameOrigin
        from capo_ray.view.page import PATIENCE, add_pages

        check_port(given.host, given.port)
    except NoRun as error:
        raise ConfigError(str(error)) from None
    except ImportError as error:
        raise ConfigError(
            f"the page needs NiceGUI and pyarrow ({error}): pip install '.[view]' in a checkout"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {given.host}:{given.port} ({error.strerror}): try another port=N"
        ) from None
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
