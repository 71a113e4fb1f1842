"""Conversations as text: chat templates, rendered without the model and without its tokenizer's library.

A template comes from the configuration (`conf/model` has those of the paper's models) or from the model's own files.
Leaves out turning text into tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from capo_ray.config.fault import ConfigError
from capo_ray.models.template import TemplateFault, rendered

MARK = re.compile(r"<\|[^|<>\s]+\|>")


class Encode(Protocol):
    def __call__(self, question: str, system: str | None = None, /) -> tuple[int, ...]:
        """Token ids of the chat that ends where the answer begins. `system` stands in for the usual system message."""


def conversation(question: str, system: str | None) -> list[dict[str, str]]:
    """The messages that a policy answers."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question}]


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    special: Mapping[str, str] | None = None,
    add_generation_prompt: bool = True,
    source: str = "chat_template",
) -> str:
    """`messages` as the model reads them, up to where its answer begins. `special`: the tokenizer's special tokens by
    name, for templates that refer to them. Raises ConfigError, which begins with `source`, where the template refuses
    them or cannot be rendered."""
    try:
        return rendered(template, messages, special or {}, add_generation_prompt=add_generation_prompt)
    except TemplateFault as error:
        raise ConfigError(f"{source}: it does not render these messages: {error}") from error


def check_marks(template: str, vocabulary: Container[str], field: str) -> None:
    """Raises ConfigError where the template writes marks such as <|im_start|> that are no tokens of the tokenizer."""
    for mark in MARK.findall(template):
        if mark not in vocabulary:
            raise ConfigError(
                f"{field}.chat_template: it writes {mark}, which is no token of this model's tokenizer: the template "
                f"belongs to another model. Pass {field}.chat_template=null for the tokenizer's own"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTemplate:
    """What the tokenizer of a model says of conversations."""

    text: str | None = None
    """None: it has no chat template."""
    source: str = "chat_template"
    """Where the template stands, for messages."""
    special: Mapping[str, str] = field(default_factory=dict)
    """The special tokens that any template may refer to, by name."""


def template_in(folder: Path) -> OwnTemplate:
    """Of the tokenizer in `folder`, where there is one. Raises ConfigError that names the file and the fault in it."""
    path = folder / "tokenizer_config.json"
    spec = read_json(path) if path.is_file() else {}
    if not isinstance(spec, dict):
        raise ConfigError(f"{path}: it must hold an object, and holds {kind_of(spec)}; {_AGAIN}")
    alone = folder / "chat_template.jinja"
    source = str(alone) if alone.is_file() else f"{path}, `chat_template`"
    template = _text_of(alone) if alone.is_file() else _template(spec.get("chat_template"), source)
    tokens = {name: _content(spec.get(name), f"{path}, `{name}`") for name in _SPECIAL}
    special = {name: token for name, token in tokens.items() if token is not None}
    return OwnTemplate(text=template, source=source, special=special)


_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_AGAIN = "the file is broken or of another kind: get the model's files again"


def read_json(path: Path) -> Any:
    """Raises ConfigError that names the file."""
    try:
        return json.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not JSON ({error}); {_AGAIN}") from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def _template(given: Any, source: str) -> str | None:
    if isinstance(given, list):  # several by name
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default", "" if len(named) != len(given) else None)
    if given is None or (isinstance(given, str) and given):
        return given
    raise ConfigError(f"{source}: it must be a text, or a list of templates with name and template; {_AGAIN}")


def _content(token: Any, source: str) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    if (text is None and not isinstance(token, dict)) or isinstance(text, str):
        return text
    raise ConfigError(f"{source}: it must be a text, or an object with the text as `content`; {_AGAIN}")


def kind_of(value: Any) -> str:
    """Of a value out of JSON, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
