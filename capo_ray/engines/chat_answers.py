"""What servers that speak OpenAI's chat completions answer: completions, and the many ways to say no.

Pure: from a status and a text to values and to the errors of `protocols`. Leaves out sending (critic_http).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import accumulate, pairwise
from typing import Any

from capo_ray.credit.reply import storable
from capo_ray.engines.protocols import MOST_TOKENS, Completion, Replies

CHARACTERS_PER_TOKEN = 4
"""About, of what critics write; for servers that do not count."""
OPTIONAL = ("seed", "top_p", "temperature")
"""Fields of a request that a server can do without, those first whose loss changes least."""
_FINISHED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete"})
_READ = 20_000
"""Characters of an answer in which the reason of a fault is looked for."""

_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size|limit)|context the overflows"
    r"|max(?:imum|\.)?[ _](?:allowed[ _])?(?:model|prompt|input|sequence|context)[ _](?:len|length|tokens|size)"
    r"|(?:prompt|inputs?|request|messages?|conversation|query)\b.{0,60}\btoo (?:long|large|many tokens)"
    r"|too many (?:input |prompt |total )?tokens"
    r"|\btokens?\b.{0,60}\b(?:exceed|more than|greater than|over the)\w*|exceed\w*\b.{0,80}\b(?:tokens?|length)\b"
    r"|longer than\b.{0,60}\b(?:length|tokens|context|window)|reduce (?:the |your )?(?:length|prompt|input)"
    r"|\bfit\b.{0,40}\b(?:context|window)|`max_new_tokens` must be <=|`inputs` must have less than",
    re.IGNORECASE | re.DOTALL,
)
"""What vLLM, SGLang, TensorRT-LLM, llama.cpp, text-generation-inference and the hosted APIs say of it."""
_OF_PACE = re.compile(r"rate[ _-]?limit|quota|per (?:minute|hour|day)|\b[TR]PM\b", re.IGNORECASE)
_OF_REPLY = re.compile(
    r"at most \d+ (?:completion|output) tokens|max(?:imum)? (?:output|completion) tokens", re.IGNORECASE
)


def is_too_long(status: int, text: str) -> bool:
    """Whether a fault says that prompt and reply do not fit the model's window."""
    if status == 413:
        return True
    said = text[:_READ]
    refuses = status in (400, 422, 500) and not (_OF_PACE.search(said) or _OF_REPLY.search(said))
    return refuses and bool(_TOO_LONG.search(said))


def refused_field(text: str, sent: Collection[str]) -> str | None:
    """The field of a request that a server names when it rejects one: the limit of tokens where it wants its newer
    name, or one of OPTIONAL."""
    said = text[:_READ]
    if "max_tokens" in sent and "max_completion_tokens" in said:
        return "max_tokens"
    return next((name for name in OPTIONAL if name in sent and re.search(rf"(?<!\w){name}(?!\w)", said)), None)


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
    about so many are taken to be there. A completion that ended for another reason than its model's own is taken to be
    cut off: what is in it may be a draft.
    """
    choices = sorted(answer["choices"], key=lambda choice: choice.get("index") or 0)[:n]
    if not choices:
        raise ValueError("no choices")
    texts = [storable(_content(choice["message"].get("content"))) for choice in choices]
    usage, lengths = answer.get("usage") or {}, [len(text) for text in texts]
    if counts_tokens(answer):
        tokens = _split(_count(usage, "completion_tokens"), lengths)
    else:
        tokens = [-(-length // CHARACTERS_PER_TOKEN) for length in lengths]
    return Replies(
        completions=tuple(
            Completion(text=text, truncated=_is_cut_off(choice.get("finish_reason")), num_tokens=share)
            for text, choice, share in zip(texts, choices, tokens, strict=True)
        ),
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_tokens=_count(usage.get("prompt_tokens_details") or {}, "cached_tokens"),
    )


def counts_tokens(answer: Mapping[str, Any]) -> bool:
    """Whether a chat completion answer says how many tokens were written."""
    return (answer.get("usage") or {}).get("completion_tokens") is not None


def _content(content: Any) -> str:
    """A message's text: whole, or in parts, of which those that hold thoughts are no part of the reply."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError("content is no text")
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = str(part.get("type", "text"))
    if "think" in kind or "reason" in kind:
        return ""
    if kind not in ("text", "output_text") or not isinstance(part.get("text"), str):
        raise TypeError(f"content is no text: a part of type {kind[:40]!r}")
    return str(part["text"])


def _is_cut_off(reason: Any) -> bool:
    return reason is not None and str(reason).lower() not in _FINISHED


def _count(usage: Mapping[str, Any], name: str) -> int:
    """Tokens that a server counts; 0 where it does not."""
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS or value % 1:
        raise ValueError(f"usage.{name} must be a number of tokens, got {str(value)[:40]!r}")
    return int(value)


def _split(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights`."""
    whole = sum(weights)
    ends = [round(total * end / whole) if whole else total for end in accumulate(weights)]
    return [end - start for start, end in pairwise([0, *ends])]
