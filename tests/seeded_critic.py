"""A critic for tests whose replies are a function of their seeds alone, as the protocol wants it."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from capo_ray.credit.critique import render_reply
from capo_ray.engines.protocols import Completion, Message, Replies
from capo_ray.types import Metrics, Sampling


@dataclass
class SeededCritic:
    """What completion i says is a function of seed + i alone, as the protocol wants it; some are unreadable."""

    name: str = "a"
    flag_share: float = 0.2
    unreadable_share: float = 0.1
    num_steps: int = 3
    turns: int = 1
    """Of the event loop that an answer takes."""
    asked: list[tuple[int, int]] = field(default_factory=list)
    """(seed, n)"""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        self.asked.append((seed, n))
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return Replies(completions=tuple(self.say(seed + i) for i in range(n)), prompt_tokens=9, cached_tokens=0)

    def say(self, seed: int) -> Completion:
        rng = random.Random(seed)
        wrong = [step for step in range(self.num_steps) if rng.random() < self.flag_share]
        text = "hm" if rng.random() < self.unreadable_share else render_reply(wrong)
        return Completion(text=text, truncated=False, num_tokens=len(text))

    def metrics(self) -> Metrics:
        return {}
