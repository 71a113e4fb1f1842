"""A small server that speaks as much of OpenAI's chat completions as tests need, in this process."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web

from capo_ray.config.critic import Voter
from capo_ray.engines.critic_http import HttpCritic

Answer = Callable[[dict[str, Any], web.Request], Awaitable[web.StreamResponse]]
ListModels = Callable[[web.Request], web.StreamResponse]


def chat(texts: Sequence[str], *, finish: str = "stop", usage: dict[str, Any] | None = None) -> web.Response:
    """A chat completion answer with one choice per text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    return web.json_response({"object": "chat.completion", "choices": choices, "usage": usage})


def critic_at(endpoint: str, model: str = "judge", **given: Any) -> HttpCritic:
    """A critic on the server there, with no key unless `given` (fields of its block) names one."""
    block = Voter(kind="http", endpoints=(endpoint,), served_model=model, **({"api_key_env": None} | given))
    return HttpCritic(block, endpoint)


@asynccontextmanager
async def serving(answer: Answer, list_models: ListModels | None = None) -> AsyncIterator[str]:
    """The endpoint of a server that answers with `answer(body, request)` until the block ends."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(await request.json(), request)

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", handle)
    if list_models is not None:

        async def models(request: web.Request) -> web.StreamResponse:
            return list_models(request)

        app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


@contextmanager
def serving_in_thread(answer: Answer, list_models: ListModels | None = None) -> Iterator[str]:
    """The same with an event loop in a thread of its own, for what cannot share one."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    endpoints: list[str] = []

    async def scene() -> None:
        async with serving(answer, list_models) as endpoint:
            endpoints.append(endpoint)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(scene(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield endpoints[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def unused_endpoint() -> str:
    """An address that nobody listens at."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}/v1"
