"""One prompt of a run as its policy will read it, without network, and without files that are not here.

Part of what `dry_run=true` prints. Leaves out the critic's side.
"""

from __future__ import annotations

from pathlib import Path

from capo_ray.config.run import Config
from capo_ray.data.problem import DataError, Problem
from capo_ray.data.prompts import arithmetic_problems
from capo_ray.data.read import is_here, problems
from capo_ray.models.chat import conversation
from capo_ray.models.find import shown

STAND_IN = Problem(id="stand-in", question="What is $2 + 3$?", answer="5")


def prompt_example(config: Config) -> str:
    """The first problem of the data where they are files on this machine, else a stand-in, in the chat template."""
    problem, source = _first(config)
    messages = conversation(problem.question, problem.system or config.policy.system_prompt)
    text = shown(messages, config.policy, add_generation_prompt=True)
    return f"a prompt as the policy reads it ({source})\n" + "\n".join(f"  | {line}" for line in text.split("\n"))


def _first(config: Config) -> tuple[Problem, str]:
    if config.data.kind == "arithmetic":
        return arithmetic_problems(config.seed, 1, config.data)[0], "made up, as in the run"
    if not is_here(config.data):
        return STAND_IN, f"a stand-in: {config.data.path} is not looked at in a dry run"
    try:
        first = next(problems(config.data))
    except DataError as error:
        first = error
    if isinstance(first, DataError):
        return STAND_IN, "a stand-in: the data cannot be used, see the verdict"
    return first, f"the first of {Path(str(config.data.path)).name}"
