"""A child process of servers that misbehave: `python chaos_servers.py SEED PORT:KIND ...`; port 0 takes a free one.

Prints the ports once all listen. A good answer holds, per completion, the seed it was asked with and a number that no
other answer of this process has, so that whoever counts can tell an answer that was lost or counted twice.
"""

import asyncio
import itertools
import random
import sys

from aiohttp import web

KINDS = ("good", "failing", "busy", "garbage", "hanging", "breaking")


def main(seed: str, *servers: str) -> None:
    rng = random.Random(seed)
    numbers = itertools.count()

    def good(body: dict) -> web.Response:
        verdict = "<incorrect_steps></incorrect_steps>"
        choices = [
            {
                "index": i,
                "message": {"content": f"{body['seed'] + i} {seed}-{next(numbers)}\n{verdict}"},
                "finish_reason": "stop",
            }
            for i in range(body.get("n", 1))
        ]
        usage = {"prompt_tokens": 9, "completion_tokens": 5 * len(choices)}
        return web.json_response({"choices": choices, "usage": usage})

    def handler(kind: str) -> object:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            if kind == "good" or rng.random() > (0.003 if kind == "hanging" else 0.2):
                return good(body)
            if kind == "failing":
                return web.Response(status=500, text="boom")
            if kind == "busy":
                return web.Response(status=429, headers={"Retry-After": "0.05"})
            if kind == "garbage":
                return web.Response(text=rng.choice(["<html>", "{}", '{"choices": []}', "[[[["]))
            if kind == "hanging":
                await asyncio.sleep(3600)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        return handle

    async def serve() -> None:
        ports = []
        for server in servers:
            port, kind = server.split(":")
            assert kind in KINDS, kind
            app = web.Application()
            app.router.add_post("/v1/chat/completions", handler(kind))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", int(port), reuse_address=True).start()
            ports.append(runner.addresses[0][1])
        print(*ports, flush=True)
        await asyncio.sleep(600)

    asyncio.run(serve())


if __name__ == "__main__":
    main(*sys.argv[1:])
