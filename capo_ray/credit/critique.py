"""What a critic is shown and should reply: the reference, steps in numbered tags (docs/algorithm.md section 3).

Text from outside that imitates one of our tags, or a chat model's control tokens, is escaped with a backslash, which
can be undone: the prompt holds exactly the response's steps. This cannot stop a response from talking a critic round in
plain words.

Leaves out: the words around them (see `credit.template`), reading replies (see `credit.reply`), asking (see `critics`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from capo_ray.credit import thoughts
from capo_ray.types import Prompt

ReferenceKind = Literal["solution", "answer", "none"]
Role = Literal["system", "user"]
Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """What a critic is told of the right solution."""

    kind: ReferenceKind
    text: str = ""


def reference_of(prompt: Prompt, kind: ReferenceKind) -> Reference:
    """The reference of `kind`; a problem without a solution falls back to its answer, one without that to nothing."""
    if kind == "solution" and prompt.solution.strip():
        return Reference("solution", prompt.solution.strip())
    if kind != "none" and prompt.answer.strip():
        return Reference("answer", prompt.answer.strip())
    return Reference("none")


def shorter_reference(prompt: Prompt, kind: ReferenceKind) -> Reference | None:
    """What is shown where the reference of `kind` does not fit: a solution's final answer; None: nothing is shorter."""
    if reference_of(prompt, kind).kind != "solution":
        return None
    return reference_of(prompt, "answer")


_TAG = (
    r"(?:\s*+(?:/\s*+)?(?:step_|incorrect[_ ]steps)"  # our own
    r"|[|｜][^<>|｜\s]{1,40}[|｜]>|/?(?:s|bos|eos|pad|unk|tool_call|tool_response)>|(?:start|end)_of_turn>"
    r"|/?SYS>>|/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"  # control tokens of chat models
    rf"|\|?channel\|?>|\s?/?\s?{thoughts.NAMES}\s?[>\]▷])"  # marks of thoughts
)
_IMITATION = re.compile(rf"[<\[◁](?=\\*{_TAG})", re.IGNORECASE)
_ESCAPED = re.compile(rf"([<\[◁])\\(?=\\*{_TAG})", re.IGNORECASE)


def escape(text: str) -> str:
    """Put a backslash into whatever in `text` could be taken for a tag of ours or a control token."""
    return _IMITATION.sub(r"\g<0>\\", text)


def unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def wrap(steps: Sequence[str]) -> str:
    """Steps between `<step_i>` and `</step_i>`, i from 0."""
    return "\n".join(f"<step_{i}>\n{escape(step)}\n</step_{i}>" for i, step in enumerate(steps))


_WRAPPED = re.compile(r"^<step_([0-9]+)>\n(.*?)\n</step_\1>$", re.DOTALL | re.MULTILINE)


def unwrap(prompt: str) -> list[str]:
    """The steps that a prompt holds, as they were before `wrap`."""
    return [unescape(match[2]) for match in _WRAPPED.finditer(prompt)]


def fingerprint(asked: Messages) -> str:
    """Short and equal for equal conversations alone."""
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()


def render_reply(wrong_steps: Iterable[int]) -> str:
    """The shortest reply that says `wrong_steps`: what a critic is trained to answer to the `brief` template."""
    listed = ", ".join(str(step) for step in sorted(wrong_steps))
    return f"{'No' if listed else 'Yes'}\n<incorrect_steps>{listed}</incorrect_steps>"
