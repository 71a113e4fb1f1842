"""Which fault comes when: a sequence without an end that a seed replays, each kind once before any comes again.

Leaves out what is done (kinds) and doing it (strike).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from capo_ray.faults.kinds import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One of them, with what is left to chance."""

    number: int
    """From 0, in the whole sequence."""
    kind: Kind
    which: float
    """Of several processes the one at this share of them, in [0, 1)."""
    delay: float
    """Where the moment is any: shares of a step after a step."""


def faults(kinds: Sequence[Kind], *, seed: int, start: int = 0) -> Iterator[Fault]:
    """The sequence from number `start` on."""
    for bag in range(start // len(kinds), 1 << 30):
        rng = random.Random(f"{seed} {bag}")
        for place, kind in enumerate(rng.sample(kinds, len(kinds))):
            fault = Fault(number=bag * len(kinds) + place, kind=kind, which=rng.random(), delay=rng.random())
            if fault.number >= start:
                yield fault
