"""The critic over HTTP, against a small local server: what is sent, what is learnt, and what becomes of every fault."""

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from openai_server import Answer, chat, critic_at, serving, unused_endpoint

from capo_ray.engines.chat_answers import retry_after_s
from capo_ray.engines.critic_http import HttpCritic, HttpCriticError, server_name
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
            critic = critic_at(endpoint, **settings)
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
        (400, "prompt is too long: 208310 tokens > 200000 maximum"),
        (400, "The input token count (40000) exceeds the maximum number of tokens allowed (32768)."),
        (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
        (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
        (400, "Please reduce the length of the messages or completion."),
        (400, "Trying to keep the first 5000 tokens when context the overflows."),
        (400, "Input is too long for requested model."),
        (400, "Your request exceeded model token limit: 131072"),
        (400, "This model's maximum prompt length is 131072 but the request contains 140000 tokens."),
        (400, "prompt length (5000) exceeds max input length (4096)"),
        (400, "too many tokens: the total number of tokens in the prompt cannot exceed 4081"),
        (200, '{"error": {"message": "context_length_exceeded", "code": 400}}'),
        (500, "Requested tokens (9000) exceed context window of 8192"),
    ],
)
def test_too_long(status: int, body: str) -> None:
    with pytest.raises(PromptTooLong, match=f"/v1/chat/completions: {'' if status == 200 else f'HTTP {status}: '}"):
        using(fixed(status, body), ask(2))


@pytest.mark.parametrize(
    "body",
    [
        "max_tokens is too large: 2048. This model supports at most 1024 completion tokens",
        "You exceeded your current quota of tokens per day",
        "Rate limit reached: more than 6000 tokens per minute",
        "messages: unknown role",
    ],
)
def test_not_too_long(body: str) -> None:
    with pytest.raises(RequestRejected):
        using(fixed(400, body), ask())


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
        (fixed(302, "moved", Location="http://elsewhere.example/v1"), "HTTP 302: it redirects to http://elsewhere.exa"),
        (fixed(307, "moved", Location="http://elsewhere.example/v1"), "HTTP 307: it redirects to http://elsewhere.exa"),
        (fixed(307, "moved", Location="//127.0.0.1:9/v1"), "HTTP 307: it redirects to //127.0.0.1:9/v1, which is not"),
        (fixed(307, "moved", Location="/v1/chat/completions"), "it redirects more than 3 times"),
        (fixed(500, "\x1b]0;title\x07a\n\x9b31mred"), "HTTP 500: \ufffd]0;title\ufffda \ufffd31mred$"),
        (fixed(200, "\xff\x00"), "no chat completion"),
    ],
)
def test_faults(answer: Answer, message: str) -> None:
    with pytest.raises(HttpCriticError, match=message):
        using(answer, ask(2))


def said(content: Any, finish: Any = "stop", **usage: Any) -> Answer:
    """A server that says `content` in one completion."""
    choice = {"index": 0, "message": {"content": content}, "finish_reason": finish}
    return fixed(200, json.dumps({"choices": [choice], "usage": usage or None}))


@pytest.mark.parametrize("name", ["completion_tokens", "prompt_tokens", "cached_tokens"])
@pytest.mark.parametrize("count", [-1, 2**40, 2**31, "12", 1.5, float("nan"), float("inf"), True, [3], {}])
def test_counts_that_are_none(count: Any, name: str) -> None:
    """They would go into metrics, a budget and the ledger's columns."""
    usage = {"completion_tokens": 3, "prompt_tokens": 3, name: count}
    if name == "cached_tokens":
        usage["prompt_tokens_details"] = {"cached_tokens": usage.pop(name)}
    with pytest.raises(HttpCriticError, match=f"usage.{name} must be a number of tokens"):
        using(said("Yes", **usage), ask())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Yes\n"}, {"type": "text", "text": "done"}], "Yes\ndone"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "No"}], "No"),
        ([{"type": "reasoning", "text": "hm"}, "No"], "No"),
        ([{"text": "No"}], "No"),
        ([], ""),
        ("an emoji cut in two \ud83d", "an emoji cut in two \ufffd"),
        ("a bell \x07, an escape \x1b[2J, a NUL \x00", "a bell \ufffd, an escape \ufffd[2J, a NUL \ufffd"),
        ("tabs\tand\r\nlines", "tabs\tand\r\nlines"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_content(content: Any, text: str) -> None:
    assert texts(using(said(content), ask())) == [text]


@pytest.mark.parametrize("content", [7, {"text": "x"}, [7], [{"type": "image_url"}], [{"type": "text", "text": 7}]])
def test_content_that_is_no_text(content: Any) -> None:
    with pytest.raises(HttpCriticError, match="no chat completion"):
        using(said(content), ask())


@pytest.mark.parametrize(
    ("finish", "truncated"),
    [
        ("stop", False),
        ("end_turn", False),
        (None, False),
        ("length", True),
        ("max_tokens", True),
        ("model_length", True),
        ("content_filter", True),
        ("abort", True),
    ],
)
def test_what_did_not_end_by_itself_was_cut_off(finish: str | None, truncated: bool) -> None:
    assert using(said("Yes", finish), ask()).completions[0].truncated is truncated


def test_an_answer_without_end_is_read_to_a_bound() -> None:
    sent = 0

    async def answer(body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while sent < 200:
                await response.write(b" " * 2**20)
                sent += 1
        return response

    with pytest.raises(HttpCriticError, match="an answer of more than 4210688 bytes"):
        using(answer, ask())
    assert sent < 100


def test_a_redirect_within_the_host_is_followed() -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        if "twice" in request.query:
            return chat([body["model"]])
        return web.Response(status=308, headers={"Location": "/v1/chat/completions?twice=1"})

    assert texts(using(answer, ask())) == ["judge"]


@pytest.mark.parametrize("refused", [{"seed"}, {"top_p"}, {"seed", "top_p", "temperature"}, {"n", "seed"}])
@pytest.mark.parametrize("names_one", [True, False])
def test_what_a_server_does_not_take_is_left_out_from_then_on(
    refused: set[str], names_one: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it names what it refuses one after the other or all at once."""
    seen: list[set[str]] = []

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        seen.append(set(body))
        if odd := sorted(refused & set(body)):
            named = odd[:1] if names_one else odd
            detail = [{"type": "extra_forbidden", "loc": ["body", name]} for name in named]
            return web.json_response({"detail": detail}, status=422)
        return chat(["ok"] * body.get("n", 1))

    async def use(critic: HttpCritic) -> None:
        for _ in range(2):
            assert texts(await ask(2)(critic)) == ["ok", "ok"]

    using(answer, use)
    assert not refused & seen[-1] and {"messages", "model", "max_tokens"} <= seen[-1]
    warned = [record.message for record in caplog.records if "does not take" in record.message]
    assert len(warned) == 1 and all(name in warned[0] for name in refused - {"n"})


def test_what_is_rejected_for_another_reason_teaches_nothing() -> None:
    """An error may repeat the request, and name every field of it."""
    bodies: list[dict[str, Any]] = []

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        bodies.append(body)
        if "n" in body:
            return web.json_response({"error": "n must be 1", "input": body}, status=400)
        return chat(["ok"])

    assert texts(using(answer, ask(2))) == ["ok", "ok"]
    assert {"seed", "top_p", "temperature"} <= set(bodies[-1])


@pytest.mark.parametrize("left_out", [(), ("seed",), ("seed", "temperature", "top_p")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_fields_that_mean_nothing_are_not_sent(left_out: tuple[str, ...], temperature: float) -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        return chat([",".join(sorted({"seed", "temperature", "top_p"} & set(body)))])

    sampling = Sampling(max_tokens=4, temperature=temperature, top_p=0.9)
    replies = using(answer, lambda critic: critic.complete(MESSAGES, sampling, n=1, seed=1), leave_out=left_out)
    meant = {"temperature"} if temperature == 0 else {"seed", "temperature", "top_p"}
    assert texts(replies) == [",".join(sorted(meant - set(left_out)))]


LONG_KEY = "sk-proj-9aZ/+Qw7_rT5yU3iO1pL0kJ8hG6fD4sA2zX"


@pytest.mark.parametrize("status", [200, 401, 500])
@pytest.mark.parametrize(
    "spelling",
    [
        LONG_KEY,
        LONG_KEY[: len(LONG_KEY) // 2 + 1],
        LONG_KEY[-len(LONG_KEY) // 2 - 1 :],
        quote(LONG_KEY, safe=""),
        LONG_KEY.encode().hex(),
        base64.b64encode(LONG_KEY.encode()).decode(),
        base64.urlsafe_b64encode(LONG_KEY.encode()).decode(),
        base64.b64encode(f"user:{LONG_KEY}".encode()).decode(),
        base64.b64encode(f"Bearer {LONG_KEY}".encode()).decode(),
    ],
)
def test_no_key_is_shown(spelling: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not half of it either: what is masked is cut afterwards, wherever it stands."""
    monkeypatch.setenv("CRITIC_KEY", LONG_KEY)
    for before in (0, 245, 270, 290):
        text = f"{'x' * before} Incorrect key: {spelling}. Try again"
        answer = said(text) if status == 200 else fixed(status, text)
        try:
            shown = texts(using(answer, ask(), api_key_env="CRITIC_KEY"))[0]
            assert "***" in shown and shown.endswith(". Try again")
        except HttpCriticError as error:
            shown = str(error)
        assert not [at for at in range(10, len(spelling) - 9) if spelling[at : at + 10] in shown]


def test_a_key_spelt_in_jsons_own_way_and_one_that_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRITIC_KEY", LONG_KEY)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in LONG_KEY)
    answer = fixed(200, f'{{"choices": [{{"message": {{"content": "{escaped}"}}}}]}}')
    assert texts(using(answer, ask(), api_key_env="CRITIC_KEY")) == ["***"]
    monkeypatch.setenv("CRITIC_KEY", "EMPTY")
    assert texts(using(said("The set is EMPTY"), ask(), api_key_env="CRITIC_KEY")) == ["The set is EMPTY"]
    monkeypatch.setenv("CRITIC_KEY", "sk-two\nlines-of-a-key")
    with pytest.raises(HttpCriticError) as caught:
        using(said("Yes"), ask(), api_key_env="CRITIC_KEY")
    assert "lines-of" not in str(caught.value)


def test_a_connection_that_breaks() -> None:
    async def answer(body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    with pytest.raises(HttpCriticError, match=r"ServerDisconnected|ClientOS"):
        using(answer, ask())


def test_nobody_there() -> None:
    async def scene() -> None:
        critic = critic_at(await unused_endpoint())
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
