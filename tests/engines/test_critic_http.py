"""The critic over HTTP, against a small local server: what is sent, what is learnt, and what becomes of every fault."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from openai_server import Answer, chat, serving, unused_endpoint

from capo_ray.engines.critic_http import HttpCritic, HttpCriticError, HttpSettings, retry_after_s, server_name
from capo_ray.engines.protocols import EngineBusy, PromptTooLong, Replies, RequestRejected
from capo_ray.types import Sampling

MESSAGES = ({"role": "system", "content": "Judge."}, {"role": "user", "content": "<step_0>\n1\n</step_0>"})
SAMPLING = Sampling(max_tokens=64, temperature=0.7, top_p=0.9)
KEY = "sk-a-secret"
USAGE = {"prompt_tokens": 50, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 32}}

Use = Callable[[HttpCritic], Awaitable[Any]]


def using(answer: Answer, use: Use, **settings: Any) -> Any:
    """What `use` makes of a critic on a server that answers with `answer`."""

    async def scene() -> Any:
        async with serving(answer) as endpoint:
            critic = HttpCritic(HttpSettings(endpoint=endpoint, model="judge", **settings), name="http")
            try:
                return await use(critic)
            finally:
                await critic.close()

    return asyncio.run(scene())


def ask(n: int = 1, seed: int = 7) -> Use:
    return lambda critic: critic.complete(MESSAGES, SAMPLING, n=n, seed=seed)


def texts(replies: Replies) -> list[str]:
    return [completion.text for completion in replies.completions]


def fixed(status: int, text: str = "", **headers: str) -> Answer:
    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer


def test_one_request_for_all_completions() -> None:
    seen: list[tuple[dict[str, Any], str | None]] = []

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        seen.append((body, request.headers.get("Authorization")))
        return chat(["aaaa", "bb"], finish="length", usage=USAGE)

    async def use(critic: HttpCritic) -> tuple[Replies, dict[str, float]]:
        return await critic.complete(MESSAGES, SAMPLING, n=2, seed=2**61 + 9), critic.metrics()

    replies, metrics = using(answer, use)
    ((body, key),) = seen
    assert body == {
        "model": "judge",
        "messages": list(MESSAGES),
        "max_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "n": 2,
        "seed": 9,
    }
    assert key is None
    assert texts(replies) == ["aaaa", "bb"]
    assert [(c.truncated, c.num_tokens) for c in replies.completions] == [(True, 8), (True, 4)]
    assert (replies.prompt_tokens, replies.cached_tokens) == (50, 32)
    assert metrics.pop("busy_s") > 0
    assert metrics == {"generated_tokens": 12, "prompt_tokens": 50, "cached_tokens": 32, "running": 0}


def test_no_usage_and_no_content_are_borne() -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": None}, "finish_reason": "length"}]})

    (completion,) = using(answer, ask()).completions
    assert (completion.text, completion.truncated, completion.num_tokens) == ("", True, 0)


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": 9, "completion_tokens": None}}])
def test_a_server_that_counts_no_tokens_has_them_counted_and_is_told_of_once(
    usage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        choices = [{"index": i, "message": {"content": "x" * (400 * i + 1)}} for i in range(2)]
        return web.json_response({"choices": choices} | usage)

    async def twice(critic: HttpCritic) -> tuple[Replies, float]:
        await ask(n=2)(critic)
        return await ask(n=2)(critic), critic.metrics()["generated_tokens"]

    replies, total = using(answer, twice)
    assert [completion.num_tokens for completion in replies.completions] == [1, 101] and total == 204
    assert sum("does not say how many tokens it wrote" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("refuses", [True, False])
def test_a_server_that_gives_one_completion_at_a_time_is_asked_n_times(refuses: bool) -> None:
    """Whether it refuses `n` or overlooks it; it is tried once, and every completion has its own seed."""
    seen: list[tuple[int, int]] = []

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        seen.append((body.get("n", 1), body["seed"]))
        if refuses and "n" in body:
            return web.json_response({"error": {"message": "only one completion choice is allowed"}}, status=400)
        return chat([f"seed {body['seed']}"], usage=USAGE)

    async def use(critic: HttpCritic) -> list[Replies]:
        return [await ask(3)(critic), await ask(2, seed=20)(critic)]

    both = using(answer, use)
    assert [texts(replies) for replies in both] == [["seed 7", "seed 8", "seed 9"], ["seed 20", "seed 21"]]
    assert [n for n, _ in seen].count(3) == 1 and [n for n, _ in seen].count(2) == 0
    assert [replies.prompt_tokens for replies in both] == [50, 50]
    assert sum(completion.num_tokens for completion in both[0].completions) == 36


def test_a_server_that_gives_fewer_than_asked_is_asked_for_the_rest() -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        return chat([f"{body['seed'] + i}" for i in range(min(2, body.get("n", 1)))])

    assert texts(using(answer, ask(4))) == ["7", "8", "9", "10"]


def test_the_limit_by_its_newer_name() -> None:
    seen: list[set[str]] = []

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        seen.append({"max_tokens", "max_completion_tokens"} & set(body))
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": message}}, status=400)
        return chat(["ok"] * body.get("n", 1))

    async def use(critic: HttpCritic) -> None:
        for _ in range(2):
            assert texts(await ask(2)(critic)) == ["ok", "ok"]

    using(answer, use)
    assert seen == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, '{"error": {"message": "This model\'s maximum context length is 4096 tokens."}}'),
        (400, '{"error": {"code": "context_length_exceeded"}}'),
        (400, '{"error": {"message": "the request exceeds the available context size"}}'),
        (422, '{"error":"`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens"}'),
        (422, '{"error":"Input validation error: `inputs` must have less than 4095 tokens. Given: 5000"}'),
        (413, "Payload Too Large"),
    ],
)
def test_too_long(status: int, body: str) -> None:
    with pytest.raises(PromptTooLong, match=f"/v1/chat/completions: HTTP {status}: "):
        using(fixed(status, body), ask(2))


@pytest.mark.parametrize("status", [400, 422])
def test_rejected(status: int) -> None:
    with pytest.raises(RequestRejected, match=f"/v1/chat/completions: HTTP {status}: content filter"):
        using(fixed(status, "content filter"), ask(2))


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry-After": "7"}, 7.0),
        (429, {}, None),
        (429, {"Retry-After": "soon"}, None),
        (503, {"Retry-After": "0.5"}, 0.5),
    ],
)
def test_busy(status: int, headers: dict[str, str], wait: float | None) -> None:
    with pytest.raises(EngineBusy, match=f"HTTP {status}: slow down") as caught:
        using(fixed(status, "slow down", **headers), ask())
    assert caught.value.retry_after_s == wait


def test_retry_after_as_a_date() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < (retry_after_s(in_a_minute) or 0) <= 60
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("inf") is None and retry_after_s("-3") == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fixed(500, "boom"), "/v1/chat/completions: HTTP 500: boom"),
        (fixed(503, "starting"), "HTTP 503: starting"),
        (fixed(404, "no such page"), "HTTP 404"),
        (fixed(200, "<html>a proxy's page</html>"), "an answer that is no chat completion .*a proxy's page"),
        (fixed(200, "[]"), "no chat completion"),
        (fixed(200, '{"error": "down"}'), "no chat completion"),
        (fixed(200, '{"choices": []}'), "no choices"),
        (fixed(200, '{"choices": [{"message": {"content": 7}}]}'), "content is no text"),
        (fixed(200, '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "x"}}'), "no chat comp"),
        (fixed(200, "[" * 100_000), "no chat completion"),
        (fixed(200, "\xff\x00"), "no chat completion"),
    ],
)
def test_faults(answer: Answer, message: str) -> None:
    with pytest.raises(HttpCriticError, match=message):
        using(answer, ask(2))


def test_a_connection_that_breaks() -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    with pytest.raises(HttpCriticError, match=r"ServerDisconnected|ClientOS"):
        using(answer, ask())


def test_nobody_there() -> None:
    async def scene() -> None:
        critic = HttpCritic(HttpSettings(endpoint=await unused_endpoint(), model="judge"), name="http")
        try:
            await ask()(critic)
        finally:
            await critic.close()

    with pytest.raises(HttpCriticError, match="ClientConnectorError"):
        asyncio.run(scene())


def test_one_failure_of_several_requests_ends_the_others() -> None:
    hung_up = asyncio.Event()

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        if body["seed"] == 7:
            return chat(["one"])
        if body["seed"] == 8:
            return web.Response(status=500)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:  # the client has gone
            hung_up.set()
            raise
        return chat(["late"])

    async def use(critic: HttpCritic) -> None:
        with pytest.raises(HttpCriticError, match="HTTP 500"):
            await ask(3)(critic)
        await asyncio.wait_for(hung_up.wait(), 10)

    using(answer, use)


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CRITIC_KEY", f" {KEY}\n")
    seen: list[str | None] = []

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=401, text=f"Incorrect API key provided: {KEY}")

    shown: list[str] = []

    async def use(critic: HttpCritic) -> None:
        shown.append(repr(critic) + repr(vars(critic)))
        try:
            await ask()(critic)
        except HttpCriticError as error:
            shown.append(f"{error!r} {error} {error.__cause__!r} {error.__context__!r}")

    with caplog.at_level(logging.DEBUG):
        using(answer, use, api_key_env="CRITIC_KEY")
    assert seen == [f"Bearer {KEY}"]
    assert "HTTP 401: Incorrect API key provided: ***" in shown[1]
    assert KEY not in "".join(shown) + caplog.text


def test_a_servers_name() -> None:
    assert server_name("https://judge.example:8443/v1/") == "judge.example:8443"
    assert server_name("http://user:pass@host/v1") == "host"
    assert server_name("https://host/small/v1") == "host/small"  # two behind one gateway have two names
