"""Conversations as text: chat templates, rendered without the model and without its tokenizer's library.

A template comes from the configuration (`conf/model` has those of the paper's models) or from the model's own files.
Leaves out turning text into tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, Protocol

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from capo_ray.config.run import ConfigError

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
) -> str:
    """`messages` as the model reads them, up to where its answer begins. `special`: the tokenizer's special tokens by
    name, for templates that refer to them. Raises ConfigError where the template refuses them."""
    try:
        return str(
            _compiled(template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **(special or {}),
            )
        )
    except TemplateError as error:
        raise ConfigError(f"chat_template: it does not render these messages: {error}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    """With the settings and functions that transformers gives to templates."""

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(template)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def check_marks(template: str, vocabulary: Container[str], field: str) -> None:
    """Raises ConfigError where the template writes marks such as <|im_start|> that are no tokens of the tokenizer."""
    for mark in MARK.findall(template):
        if mark not in vocabulary:
            raise ConfigError(
                f"{field}.chat_template: it writes {mark}, which is no token of this model's tokenizer: the template "
                f"belongs to another model. Pass {field}.chat_template=null for the tokenizer's own"
            )


def template_in(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template of the tokenizer in `folder`, None without one; and the special tokens that any template may
    refer to."""
    path = folder / "tokenizer_config.json"
    spec = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    alone = folder / "chat_template.jinja"
    template = alone.read_text(encoding="utf-8") if alone.is_file() else spec.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    tokens = {name: _content(spec.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return template, {name: token for name, token in tokens.items() if token is not None}


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token
