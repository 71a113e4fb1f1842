"""The text that asks a critic: a Jinja file with the blocks `system` and `user`.

Two ship with the package, users bring their own. A template decides on words and order alone. Whatever it writes of
a question, a reference or a response is escaped at the moment it is written, so no filter can undo that, and the
wrapped steps go in whole: the conversation holds exactly the response's steps, whoever wrote the template. It is
compiled once per process, in Jinja's sandbox.

Leaves out whether a template asks for what is needed (see `template_check`) and where it comes from (see
`critics.prompt`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from traceback import extract_tb
from typing import get_args

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from capo_ray.credit.critique import Messages, Reference, Role, escape, wrap

SHIPPED = ("paper", "brief")
ROLES: tuple[Role, ...] = get_args(Role)
VARIABLES = ("question", "reference", "reference_kind", "steps")
_FOLDER = Path(__file__).parent / "templates"
_COMPILED = "<template>"
"""File name that Jinja gives to what it compiles from a text."""


class TemplateError(ValueError):
    """A template that cannot be used; the message has its name, the line where there is one, and what to do."""


class _Wrapped(str):
    """Wrapped steps, untouched by any filter: the one text that is written as it is."""


def _written(value: object) -> str:
    """What `{{ value }}` writes."""
    return value if type(value) is _Wrapped else escape(str(value))


_JINJA = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=_written, trim_blocks=True, lstrip_blocks=True
)
GLOBALS = frozenset(_JINJA.globals)
"""What Jinja itself defines, such as `range`."""
_ALONE = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The text of a template and what messages call it. Small and picklable: processes compile it for themselves."""

    source: str
    name: str = "the template"

    @property
    def digest(self) -> str:
        """Short and equal for equal texts alone."""
        return hashlib.blake2b(self.source.encode(), digest_size=6).hexdigest()

    def messages(self, question: str, reference: Reference, steps: Sequence[str]) -> Messages:
        """The conversation that asks a critic to judge all `steps` (their shown texts) of one response.

        Raises TemplateError where the template fails on these texts, or does not show the steps whole, once.
        """
        wrapped = _Wrapped(wrap(steps))
        values = {
            "question": question,
            "reference": reference.text,
            "reference_kind": reference.kind,
            "steps": wrapped,
        }
        blocks = compiled(self)
        try:
            texts = {role: block.render(values).strip() for role, block in blocks.items()}
        except Exception as error:  # whatever the code of a user's template may raise
            raise self.fault(_reason(error), _line(error)) from error
        if texts["user"].count(wrapped) != 1:
            raise self.fault("it must show the steps once: write {{ steps }}, without a filter, in the block `user`")
        return tuple({"role": role, "content": text} for role, text in texts.items() if text)

    def parsed(self) -> dict[Role, nodes.Block]:
        """The blocks, in the order of the conversation. Raises TemplateError where it is no template of that shape."""
        try:
            tree = _JINJA.parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise self.fault(error.message or "not a template", error.lineno) from None
        for lead in tree.find_all(_ALONE):
            raise self.fault("a template stands alone: include, import and extends lead nowhere", lead.lineno)
        for undoing in tree.find_all(nodes.FilterBlock):
            raise self.fault("no filter block: it could undo the escaping of what it holds", undoing.lineno)
        blocks = {node.name: node for node in tree.body if isinstance(node, nodes.Block)}
        for block in tree.find_all(nodes.Block):
            if block.name not in ROLES or block is not blocks.get(block.name):
                raise self.fault(
                    f"the blocks are `system` and `user`, side by side; {block.name!r} is not", block.lineno
                )
        if "user" not in blocks:
            raise self.fault("it has no block `user`: put the message between {% block user %} and {% endblock %}")
        for statement in tree.body:
            if (line := _outside(statement)) is not None:
                raise self.fault("what stands outside of the blocks `system` and `user` reaches no critic", line)
        return {role: blocks[role] for role in ROLES if role in blocks}

    def fault(self, what: str, line: int | None = None) -> TemplateError:
        return TemplateError(f"{self.name}{'' if line is None else f', line {line}'}: {what}")


@cache
def shipped(name: str) -> PromptTemplate:
    """The template that the package has under `name`, one of SHIPPED."""
    return PromptTemplate((_FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), name)


@cache
def compiled(template: PromptTemplate) -> dict[Role, jinja2.Template]:
    """Each block as a template of its own."""
    try:
        return {role: _JINJA.from_string(alone(block)) for role, block in template.parsed().items()}
    except jinja2.TemplateSyntaxError as error:
        raise template.fault(error.message or "not a template", error.lineno) from None


def alone(block: nodes.Block) -> nodes.Template:
    """A block as a template of its own, its lines numbered as before."""
    template = nodes.Template(block.body, lineno=block.lineno)
    template.set_environment(_JINJA)
    return template


def _outside(node: nodes.Node) -> int | None:
    """The line where something but a block, a comment or white space begins; None: it is one of these."""
    if isinstance(node, nodes.Block):
        return None
    if not isinstance(node, nodes.Output):
        return node.lineno
    for part in node.nodes:
        if not isinstance(part, nodes.TemplateData):
            return part.lineno
        if text := part.data.lstrip():
            return part.lineno + part.data[: -len(text)].count("\n")
    return None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"


def _line(error: Exception) -> int | None:
    """The line of the template that raised it."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == _COMPILED]
    return lines[-1] if lines else None
