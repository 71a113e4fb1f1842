"""Critics on any server that speaks OpenAI's chat completions: completes conversations over HTTP.

What a server takes is learnt from its answers and remembered: several completions in one request (`n`), or one request
each, under which name it knows the limit of tokens, and which optional fields it refuses. But for that no request is
sent twice here: who tries again, when and where is the judging service's business (critics, routing). An answer is read
up to a number of bytes, from the host that was asked alone, and the key is masked in it before anything else is done
with it. Leaves out how answers are read (chat_answers), what is asked and what replies mean (credit).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from capo_ray.config.critic import Voter
from capo_ray.credit.reply import storable
from capo_ray.engines.chat_answers import (
    CHARACTERS_PER_TOKEN,
    OPTIONAL,
    counts_tokens,
    is_too_long,
    read_replies,
    refused_field,
    retry_after_s,
)
from capo_ray.engines.protocols import EngineBusy, Message, PromptTooLong, Replies, RequestRejected
from capo_ray.engines.secret import Secret
from capo_ray.records.busy import Busy
from capo_ray.types import Metrics, Sampling

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

_CONNECT_S = 10.0
_MOST_SEED = 2**30
"""Seeds are kept below, since some servers read 32 bits."""
_SHOWN = 300
"""Characters of a server's answer that an error quotes."""
_MOST_BYTES, _MOST_BYTES_PER_TOKEN = 2**22, 256
"""Of an answer: so many, and so many more for each token that was asked for."""
_MOST_HOPS = 3
"""Redirects within one host that are followed."""


class HttpCriticError(RuntimeError):
    """The server's answer is none; the message says where, the status and what it said."""


@dataclass(frozen=True, slots=True)
class _Answered:
    status: int
    headers: Mapping[str, str]
    text: str
    """Without the key."""


class HttpCritic:
    """See protocols.CriticEngine. Belongs to the event loop that it is first used on."""

    def __init__(self, block: Voter, endpoint: str) -> None:
        """`endpoint` is the one of the block's that is asked."""
        self.name = f"{block.served_model} at {server_name(endpoint)}"
        self._block = block
        self._url = f"{endpoint.rstrip('/')}/chat/completions"
        self._session: aiohttp.ClientSession | None = None
        self._takes_n = True
        self._limit_name = "max_tokens"
        self._refused: frozenset[str] = frozenset()
        """Optional fields that the server does not take."""
        self._told_of_counts = False
        self._secret = Secret("")
        self._totals: Metrics = dict.fromkeys(("generated_tokens", "prompt_tokens", "cached_tokens"), 0.0)
        self._busy = Busy()

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        """See protocols.CriticEngine. Raises PromptTooLong, EngineBusy, RequestRejected, or HttpCriticError for every
        other fault."""
        optional = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed % _MOST_SEED}
        left_out = {*self._block.leave_out, *(("top_p", "seed") if sampling.temperature == 0 else ())}
        body = {
            "model": self._block.served_model,
            "messages": [dict(message) for message in messages],
            **{name: value for name, value in optional.items() if name not in left_out},
        }
        with self._busy:
            replies = await self._complete(body, sampling.max_tokens, n)
        self._totals["generated_tokens"] += sum(completion.num_tokens for completion in replies.completions)
        self._totals["prompt_tokens"] += replies.prompt_tokens
        self._totals["cached_tokens"] += replies.cached_tokens
        return replies

    async def _complete(self, body: Mapping[str, Any], max_tokens: int, n: int) -> Replies:
        """All in one request where the server takes `n`; what is missing then, one request each."""
        got: list[Replies] = []
        if n > 1 and self._takes_n:
            try:
                got.append(await self._send({**body, "n": n}, max_tokens))
            except RequestRejected:
                got.append(await self._send(body, max_tokens))  # raises when it was not for `n`
            self._takes_n = len(got[0].completions) > 1
        have = len(got[0].completions) if got else 0
        rest = [self._send(_with_seed(body, i), max_tokens) for i in range(have, n)]
        return _together([*got, *await _all(rest)])

    async def _send(self, body: Mapping[str, Any], max_tokens: int) -> Replies:
        """One completion request, and once more for each field that the server names when it rejects it. What helped is
        remembered."""
        limit, refused = self._limit_name, set(self._refused)
        n = body.get("n", 1)
        most = _MOST_BYTES + _MOST_BYTES_PER_TOKEN * n * max_tokens
        while True:
            sent = {name: value for name, value in body.items() if name not in refused} | {limit: max_tokens}
            answer = await self._post(sent, most)
            if answer.status == 200:
                break
            fault = self._fault(answer)
            field = refused_field(answer.text, sent) if isinstance(fault, RequestRejected) else None
            if field is None:
                raise fault
            if field == limit:
                limit = "max_completion_tokens"
            else:
                refused.add(field)
        self._learn(limit, refused)
        return self._read(answer.text, n)

    def _learn(self, limit: str, refused: set[str]) -> None:
        self._limit_name = limit
        if new := [name for name in OPTIONAL if name in refused - self._refused]:
            log.warning(
                "%s does not take %s: it is left out from now on, and the server's own applies; say so with "
                "'critic.leave_out=[%s]'",
                self._url, " and ".join(new), ",".join(new),
            )  # fmt: skip
        self._refused |= refused

    async def _post(self, body: Mapping[str, Any], most: int) -> _Answered:
        """What the server says, without the key. Redirects are followed within its host alone."""
        import aiohttp

        url = self._url
        try:
            for _ in range(_MOST_HOPS):
                async with self._open().post(
                    url, json=body, headers=self._headers(), allow_redirects=False
                ) as response:
                    target = urljoin(url, response.headers.get("Location", ""))
                    if response.status not in (307, 308) or not _same_host(url, target):
                        text = await _text(response, most)
                        return _Answered(response.status, response.headers, self._mask().masked(text, whole=False))
                url = target
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # ValueError: a key that no header can hold
            raise HttpCriticError(f"{self._url}: {self._clean(f'{type(error).__name__}: {error}')}") from None
        raise HttpCriticError(f"{self._url}: it redirects more than {_MOST_HOPS} times")

    def _read(self, text: str, n: int) -> Replies:
        """The completions of an answer; the key is sought in them once more, since JSON can spell it in another way."""
        try:
            answer = json.loads(text)
            replies = read_replies(answer, n)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            if '"error"' in text and is_too_long(400, text):  # some gateways say so with status 200
                raise PromptTooLong(f"{self._url}: {self._clean(text)}") from None
            raise HttpCriticError(
                f"{self._url}: an answer that is no chat completion ({self._clean(str(error))}): {self._clean(text)!r}"
            ) from None
        if not counts_tokens(answer) and not self._told_of_counts:
            self._told_of_counts = True
            log.warning(
                "%s does not say how many tokens it wrote (usage.completion_tokens); they are taken to have %d "
                "characters each, in speeds, metrics and critic.tokens_per_step",
                self._url, CHARACTERS_PER_TOKEN,
            )  # fmt: skip
        masked = [
            replace(completion, text=self._mask().masked(completion.text, whole=False))
            for completion in replies.completions
        ]
        return replace(replies, completions=tuple(masked))

    def _fault(self, answer: _Answered) -> Exception:
        status, text = answer.status, answer.text
        message = f"{self._url}: HTTP {status}: {self._clean(text)}"
        if 300 <= status < 400:
            target = self._clean(answer.headers.get("Location", "nowhere"))
            return HttpCriticError(
                f"{self._url}: HTTP {status}: it redirects to {target}, which is not followed; name the server's own "
                "address in critic.endpoints"
            )
        if is_too_long(status, text):
            return PromptTooLong(message)
        if status in (400, 422):
            return RequestRejected(message)
        wait = retry_after_s(answer.headers.get("Retry-After"))
        if status == 429 or (status == 503 and wait is not None):
            return EngineBusy(message, wait)
        return HttpCriticError(message)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # how many run at a time is decided by routing
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            )
        return self._session

    def _key(self) -> str:
        return os.environ.get(self._block.api_key_env or "", "").strip()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if (key := self._key()) else {}

    def _mask(self) -> Secret:
        if self._secret.key != self._key():
            self._secret = Secret(self._key())
        return self._secret

    def _clean(self, text: str) -> str:
        """The beginning of what a server says, on one line, without the key and without what steers a terminal."""
        line = " ".join(storable(self._mask().masked(text)).split())[:_SHOWN]
        return "".join(letter if letter.isprintable() else " " for letter in line)

    def metrics(self) -> Metrics:
        """Totals since the start, as vllm_engine.Requests counts them."""
        return self._totals | {"running": float(self._busy.running), "busy_s": self._busy.seconds}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def served_models(block: Voter, endpoint: str) -> list[str] | None:
    """What the server says it serves; None where it does not say. Blocks for up to ten seconds.

    Raises HttpCriticError when it cannot be reached or refuses the key.
    """
    critic = HttpCritic(block, endpoint)
    url = f"{endpoint.rstrip('/')}/models"
    request = urllib.request.Request(url)
    for name, value in critic._headers().items():
        request.add_unredirected_header(name, value)  # the key is for this server alone
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=_CONNECT_S) as answer:
            return [critic._clean(str(model["id"])) for model in json.loads(answer.read(_MOST_BYTES))["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            where = f"environment variable {block.api_key_env}" if block.api_key_env else "api_key_env"
            raise HttpCriticError(f"{url}: HTTP {error.code}: it wants another key; see {where}") from None
    except OSError as error:
        raise HttpCriticError(f"{url}: {critic._clean(str(getattr(error, 'reason', error)))}") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """An error instead: what another host serves says nothing of this one."""


async def _text(response: aiohttp.ClientResponse, most: int) -> str:
    """The body. Raises HttpCriticError where it has more than `most` bytes; the rest is not read."""
    read = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        read += chunk
        if len(read) > most:
            raise HttpCriticError(f"{response.url}: HTTP {response.status}: an answer of more than {most} bytes")
    return read.decode("utf-8", errors="replace")


def _same_host(url: str, target: str) -> bool:
    """Whether `target` is the server of `url`, or the same one with TLS."""
    try:
        here, there = urlsplit(url), urlsplit(target)
        same = (here.scheme, here.port) == (there.scheme, there.port)
    except ValueError:
        return False
    return here.hostname == there.hostname and (same or (here.scheme, there.scheme) == ("http", "https"))


def _with_seed(body: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    return {**body, "seed": body["seed"] + number} if "seed" in body else body


def server_name(endpoint: str) -> str:
    """host:port of an endpoint, and a path that is not the usual /v1, for names of critics."""
    found = urlsplit(endpoint)
    return found.netloc.rsplit("@", 1)[-1] + found.path.rstrip("/").removesuffix("/v1")


def _together(parts: Sequence[Replies]) -> Replies:
    """One conversation's replies out of several requests; its prompt is counted once."""
    return Replies(
        completions=tuple(completion for part in parts for completion in part.completions),
        prompt_tokens=parts[0].prompt_tokens,
        cached_tokens=parts[0].cached_tokens,
    )


async def _all(requests: Iterable[Coroutine[Any, Any, Replies]]) -> list[Replies]:
    """All answers; the first failure ends the other requests too."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
