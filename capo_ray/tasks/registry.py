"""What a kind of data means to the reward: how answers are verified, and who knows the truth of a step.

A new task is one entry of `TASKS`, or an object of a user's. Imports are lazy: the verifier of mathematics starts child
processes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from capo_ray import extension
from capo_ray.config.run import Config
from capo_ray.records.tally import Truth
from capo_ray.types import Prompt, Verification, Verify


@dataclass(frozen=True, slots=True)
class Task:
    verify: Verify
    find_truth: Callable[[Prompt, str], Truth] | None = None
    """(prompt, response) -> the truth of every step; None where nobody knows."""
    close: Callable[[], Awaitable[None]] | None = None
    """Ends what verifying has started."""


def arithmetic(config: Config) -> Task:
    from capo_ray.tasks.arithmetic.world import check, verify_answer

    async def verify(prompt: Prompt, response: str) -> Verification:
        return verify_answer(prompt.question, response)

    def find_truth(prompt: Prompt, response: str) -> Truth:
        return check(prompt.question, response)

    return Task(verify, find_truth)


def mathematics(config: Config) -> Task:
    from capo_ray.tasks.verify import Verifier

    verifier = Verifier(processes=config.reward.verifiers, timeout_s=config.reward.verify_timeout_s)

    async def verify(prompt: Prompt, response: str) -> Verification:
        return await verifier.verify(prompt.answer, response)

    return Task(verify, None, verifier.close)


TASKS: dict[str, Callable[[Config], Task]] = {"arithmetic": arithmetic, "math": mathematics}


def task_of(config: Config) -> Task:
    """That of `data.kind`. Raises ValueError where a task of a user's own cannot be used."""
    if make := TASKS.get(config.data.kind):
        return make(config)
    own: Task = extension.load(
        config.data.kind, lambda found: isinstance(found, Task), is_a="a capo_ray.tasks.registry.Task"
    )
    return own
