"""Whom the viewer's server answers: pages that it has served itself, and whoever is no page.

A browser says which page asks (Origin), of websockets too, to which the rules that keep pages apart do not apply:
without this any page that is open in the reader's browser could read a run. Leaves out names of others that lead here
(Starlette's TrustedHostMiddleware).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameOrigin:
    """Refuses requests and websockets whose Origin is not the address that they ask."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_own(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("asked by a page of another place", status_code=403)(scope, receive, send)


def _is_own(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")
