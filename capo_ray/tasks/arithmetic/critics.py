"""Critics that need no model: one that knows the truth of the tiny world, and one that knows nothing, for any data.

They are the ceiling and the placebo of an experiment: what perfect critiques would be worth, and what is gained by
flags alone, wherever they fall. Both answer the prompt that any critic is asked. Leaves out: the tiny critic, which is
a language model like any other (see `models`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from capo_ray.credit import critique
from capo_ray.engines.protocols import Completion, Message, Replies
from capo_ray.tasks.arithmetic.world import find_problem, judge
from capo_ray.types import Metrics, Sampling

Flags = Callable[[str, Sequence[str], random.Random], Sequence[int]]
"""(prompt, steps, source of chance) -> the steps that are flagged."""


class Critic:
    """See protocols.CriticEngine. Its replies cost no tokens."""

    def __init__(self, name: str, flags: Flags) -> None:
        self.name = name
        self._flags = flags

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        prompt = messages[-1]["content"]
        steps = critique.unwrap(prompt)
        texts = (critique.render_reply(self._flags(prompt, steps, random.Random(seed + index))) for index in range(n))
        return Replies(
            completions=tuple(Completion(text=text, truncated=False, num_tokens=0) for text in texts),
            prompt_tokens=0,
            cached_tokens=0,
        )

    def metrics(self) -> Metrics:
        return {}


def truth() -> Critic:
    """Flags every wrong step and no other."""

    def flags(prompt: str, steps: Sequence[str], rng: random.Random) -> Sequence[int]:
        judged = judge(find_problem(prompt), "\n\n".join(steps))
        return [index for index, step in enumerate(judged) if not step.right]

    return Critic("truth", flags)


def placebo(share: float) -> Critic:
    """Flags `share` of the steps, whatever they say."""

    def flags(prompt: str, steps: Sequence[str], rng: random.Random) -> Sequence[int]:
        return [index for index in range(len(steps)) if rng.random() < share]

    return Critic("placebo", flags)
