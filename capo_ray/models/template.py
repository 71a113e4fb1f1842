"""A chat template, with what transformers gives to templates, and with bounds that it does not give.

Templates come with models, so from anybody. Jinja's sandbox keeps them from files and attributes, but not from
rendering for ever or from taking all memory. So each is tried once on a small conversation in a process of its own,
which may take `SECONDS` of a core, `MEMORY` bytes and `LENGTH` characters; after that it is rendered here. Imports
jinja2 alone, so that this process starts at once. Leaves out whose template it is (see `chat`), and templates that
behave on small conversations alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY, LENGTH = 5, 1 << 30, 1_000_000
_TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n2"},
    {"role": "user", "content": "Sure?"},
)


class TemplateFault(ValueError):
    """A template cannot be rendered; the message says why, in one line."""


def rendered(
    template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str], *, add_generation_prompt: bool
) -> str:
    """Raises TemplateFault."""
    if fault := _unbounded(template, tuple(sorted(special.items()))):
        raise TemplateFault(fault)
    return _render(template, messages, special, add_generation_prompt=add_generation_prompt)


def _render(
    template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str], *, add_generation_prompt: bool
) -> str:
    try:
        text = compiled(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special,
        )
        text.encode("utf-8")  # a lone surrogate is no text for a tokenizer
        return text
    except Exception as error:  # a template is a program: it may raise whatever programs raise
        raise TemplateFault(_reason(error)) from error


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    if isinstance(error, TemplateError):
        line = getattr(error, "lineno", None)
        return said + (f" (line {line})" if line else "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks in transformers what an assistant wrote; here it changes nothing
    but that what is set inside is not seen outside."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja wants it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """Raises TemplateError, and what Jinja's parser raises of odd templates."""

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(template)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


@lru_cache(maxsize=64)
def _unbounded(template: str, special: tuple[tuple[str, str], ...]) -> str:
    """Which bound it breaks; empty where it keeps to them, whatever else is wrong with it."""
    here = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", "from capo_ray.models.template import try_out; try_out()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path[1:]])},
    )  # fmt: skip
    try:
        said, why = child.communicate(json.dumps([template, special]).encode(), timeout=20 * SECONDS)
    except subprocess.TimeoutExpired:
        said, why = b"", b""
    finally:
        child.kill()
        child.wait()
    if said:
        return str(json.loads(said))
    if why:
        return f"it could not be tried: {why.decode(errors='replace').splitlines()[-1]}"
    return f"it does not end within {SECONDS} s for four short messages"


def try_out() -> None:
    """The whole of the process that tries: a template in, what is wrong with it out."""
    import resource

    template, special = json.loads(sys.stdin.buffer.read())
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    fault = ""
    for talk in (_TALK, _TALK[1:]):
        try:
            text = _render(template, talk, dict(special), add_generation_prompt=True)
        except TemplateFault as error:
            if isinstance(error.__cause__, MemoryError):
                fault = f"it takes more than {MEMORY >> 20} MiB for four short messages"
        else:
            if len(text) > LENGTH:
                fault = f"it writes {len(text):,} characters for four short messages"
    print(json.dumps(fault))
