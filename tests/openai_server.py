"""A small server that speaks as much of OpenAI's chat completions as tests need, on this process's event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any], web.Request], Awaitable[web.StreamResponse]]


def chat(texts: Sequence[str], *, finish: str = "stop", usage: dict[str, Any] | None = None) -> web.Response:
    """A chat completion answer with one choice per text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    return web.json_response({"object": "chat.completion", "choices": choices, "usage": usage})


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """The endpoint of a server that answers with `answer(body, request)` until the block ends."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(await request.json(), request)

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


async def unused_endpoint() -> str:
    """An address that nobody listens at."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}/v1"
