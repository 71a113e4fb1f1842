"""The prompt of a run's critics: found and checked before anything starts, shown by an example in a dry run.

The text of the template goes from here to whoever asks critics, so that no other machine needs the file. Leaves out
what a template may be (see `credit.template`, `credit.template_check`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from capo_ray.config.critic import Critic
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.credit.critique import reference_of
from capo_ray.credit.template import SHIPPED, PromptTemplate, TemplateError, shipped
from capo_ray.credit.template_check import check
from capo_ray.types import Prompt

log = logging.getLogger(__name__)

_QUESTION = "A school has 12 boxes of 8 pencils each and gives away 50 pencils. How many pencils are left?"
_SOLUTION = "There are 12 * 8 = 96 pencils. After 50 are given away, 96 - 50 = 46 are left."
_ANSWER = "46"
_STEPS = (
    "First we count the pencils: 12 * 8 = 96.",
    "Then 50 are given away, so 96 - 50 = 56 are left.",
    "The answer is \\boxed{56}.",
)
"""An invented example: step 1 is wrong, step 2 merely repeats it."""


def find_template(critic: Critic) -> PromptTemplate:
    """The template that `critic.template` names; what is doubtful about it is logged. Raises ConfigError."""
    try:
        template = shipped(critic.template) if critic.template in SHIPPED else _read(critic.template)
        for warning in check(template, critic.reference):
            log.warning("critic.template: %s", warning)
    except TemplateError as error:
        raise ConfigError(f"critic.template: {error}") from error
    return template


def _read(name: str) -> PromptTemplate:
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file here"
        raise ConfigError(
            f"critic.template: {name!r} {what}; it must be {', '.join(SHIPPED)} or a Jinja file of your own"
        )
    try:
        return PromptTemplate(path.read_text(encoding="utf-8-sig"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"critic.template: {name!r} cannot be read: {error}") from error


def example(config: Config, template: PromptTemplate) -> str:
    """What the critics of `config` would read of an invented response, under a heading."""
    assert config.critic is not None
    data = config.data
    has_solutions = data.kind == "arithmetic" or None in (data.question_field, data.answer_field)
    has_solutions |= data.solution_field is not None
    prompt = Prompt(
        id="example",
        question=_QUESTION,
        token_ids=(0,),
        answer=_ANSWER,
        solution=_SOLUTION if has_solutions else "",
    )
    asked = template.messages(_QUESTION, reference_of(prompt, config.critic.reference), _STEPS)
    heading = f"a prompt as a critic reads it (critic.template {template.name}, an invented response)"
    return "\n".join([heading, *(_shown(**message) for message in asked)])


def _shown(role: str, content: str) -> str:
    return "\n".join([f"  {role}", *(f"  | {line}" for line in content.split("\n"))])
