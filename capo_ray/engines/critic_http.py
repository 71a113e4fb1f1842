"""Critics on any server that speaks OpenAI's chat completions: completes conversations over HTTP.

What a server takes is learnt from its answers and remembered: several completions in one request (`n`), or one request
each, and under which name it knows the limit of tokens. No request is sent twice here: who tries again, when and where
is the judging service's business (critics, routing). Leaves out what is asked and how replies are read (credit).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from capo_ray.busy import Busy
from capo_ray.engines.protocols import Completion, EngineBusy, Message, PromptTooLong, Replies, RequestRejected
from capo_ray.types import Metrics, Sampling

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
"""About, of what critics write; for servers that do not count."""
_CONNECT_S = 10.0
_MOST_SEED = 2**30
"""Seeds are kept below, since some servers read 32 bits."""
_TOO_LONG = (
    *("context length", "context_length", "context window", "context size", "maximum context", "too many tokens"),
    *("`max_new_tokens` must be <=", "`inputs` must have less than"),
)
"""What vLLM, llama.cpp, text-generation-inference and the like say of it."""
_SHOWN = 300
"""Characters of a server's answer that an error quotes."""


class HttpCriticError(RuntimeError):
    """The server's answer is none; the message says where, the status and what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """One server."""

    endpoint: str
    """Base address, such as http://host:8000/v1."""
    model: str
    """What the server calls the model."""
    api_key_env: str | None = None
    """Environment variable of the key; None or unset: no key is sent."""


class HttpCritic:
    """See protocols.CriticEngine. Belongs to the event loop that it is first used on."""

    def __init__(self, settings: HttpSettings, *, name: str) -> None:
        self.name = name
        self.settings = settings
        self._url = f"{settings.endpoint.rstrip('/')}/chat/completions"
        self._session: aiohttp.ClientSession | None = None
        self._takes_n = True
        self._limit_name = "max_tokens"
        self._told_of_counts = False
        self._totals: Metrics = dict.fromkeys(("generated_tokens", "prompt_tokens", "cached_tokens"), 0.0)
        self._busy = Busy()

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        """See protocols.CriticEngine. Raises PromptTooLong, EngineBusy, RequestRejected, or HttpCriticError for every
        other fault."""
        body = {
            "model": self.settings.model,
            "messages": [dict(message) for message in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % _MOST_SEED,
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
        rest = [self._send({**body, "seed": body["seed"] + i}, max_tokens) for i in range(have, n)]
        return _together([*got, *await _all(rest)])

    async def _send(self, body: Mapping[str, Any], max_tokens: int) -> Replies:
        """One completion request, and once more where only the limit's name was wrong."""
        name = self._limit_name
        try:
            return await self._post({**body, name: max_tokens}, body.get("n", 1))
        except RequestRejected as error:
            if name != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
        self._limit_name = "max_completion_tokens"
        return await self._post({**body, self._limit_name: max_tokens}, body.get("n", 1))

    async def _post(self, body: Mapping[str, Any], n: int) -> Replies:
        import aiohttp

        try:
            async with self._open().post(self._url, json=body, headers=self._headers()) as answer:
                text = (await answer.read()).decode("utf-8", errors="replace")
                status, headers = answer.status, answer.headers
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HttpCriticError(self._clean(f"{self._url}: {type(error).__name__}: {error}")) from None
        if status != 200:
            raise self._fault(status, headers, text)
        try:
            answer = json.loads(text)
            replies = read_replies(answer, n)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise HttpCriticError(
                self._clean(f"{self._url}: an answer that is no chat completion ({error}): {text[:_SHOWN]!r}")
            ) from None
        if not counts_tokens(answer) and not self._told_of_counts:
            self._told_of_counts = True
            log.warning(
                "%s does not say how many tokens it wrote (usage.completion_tokens); they are taken to have %d "
                "characters each, in speeds, metrics and critic.tokens_per_step",
                self._url, CHARACTERS_PER_TOKEN,
            )  # fmt: skip
        return replies

    def _fault(self, status: int, headers: Mapping[str, str], text: str) -> Exception:
        message = self._clean(f"{self._url}: HTTP {status}: {text[:_SHOWN].strip()}")
        if status == 413 or (status in (400, 422) and any(words in text.lower() for words in _TOO_LONG)):
            return PromptTooLong(message)
        if status in (400, 422):
            return RequestRejected(message)
        wait = retry_after_s(headers.get("Retry-After"))
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
        return os.environ.get(self.settings.api_key_env or "", "").strip()

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _clean(self, message: str) -> str:
        """Without the key, which some servers repeat."""
        key = self._key()
        return message.replace(key, "***") if key else message

    def metrics(self) -> Metrics:
        """Totals since the start, as vllm_engine.Requests counts them."""
        return self._totals | {"running": float(self._busy.running), "busy_s": self._busy.seconds}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def served_models(settings: HttpSettings) -> list[str] | None:
    """What the server says it serves; None where it does not say. Blocks for up to ten seconds.

    Raises HttpCriticError when it cannot be reached or refuses the key.
    """
    critic = HttpCritic(settings, name="")
    url = f"{settings.endpoint.rstrip('/')}/models"
    request = urllib.request.Request(url)
    for name, value in critic._headers().items():
        request.add_unredirected_header(name, value)  # the key is for this server alone
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_CONNECT_S) as answer:
            return [str(model["id"]) for model in json.load(answer)["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            where = f"environment variable {settings.api_key_env}" if settings.api_key_env else "api_key_env"
            raise HttpCriticError(f"{url}: HTTP {error.code}: it wants another key; see {where}") from None
    except OSError as error:
        raise HttpCriticError(critic._clean(f"{url}: {getattr(error, 'reason', error)}")) from None
    except (ValueError, LookupError, TypeError):
        pass
    return None


def server_name(endpoint: str) -> str:
    """host:port of an endpoint, and a path that is not the usual /v1, for names of critics."""
    found = urlsplit(endpoint)
    return found.netloc.rsplit("@", 1)[-1] + found.path.rstrip("/").removesuffix("/v1")


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None for none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def read_replies(answer: Any, n: int) -> Replies:
    """The completions of a chat completion answer, at most `n`. Raises ValueError and its like for anything else.

    The server counts tokens of all completions together: each has its share by characters. Where it does not count,
    about so many are taken to be there.
    """
    choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))[:n]
    if not choices:
        raise ValueError("no choices")
    texts = [choice["message"].get("content") or "" for choice in choices]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("content is no text")
    usage, lengths = answer.get("usage") or {}, [len(text) for text in texts]
    if counts_tokens(answer):
        tokens = _split(int(usage["completion_tokens"]), lengths)
    else:
        tokens = [-(-length // CHARACTERS_PER_TOKEN) for length in lengths]
    return Replies(
        completions=tuple(
            Completion(text=text, truncated=choice.get("finish_reason") == "length", num_tokens=share)
            for text, choice, share in zip(texts, choices, tokens, strict=True)
        ),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
    )


def counts_tokens(answer: Mapping[str, Any]) -> bool:
    """Whether a chat completion answer says how many tokens were written."""
    return (answer.get("usage") or {}).get("completion_tokens") is not None


def _split(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights`."""
    whole = sum(weights)
    ends = [round(total * end / whole) if whole else total for end in accumulate(weights)]
    return [end - start for start, end in pairwise([0, *ends])]


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
