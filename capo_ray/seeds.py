"""Every random choice of a run as a pure function of what it is for, so that results do not depend on timing."""

from __future__ import annotations

import hashlib


def seed_of(*what: int | str) -> int:
    """A seed below 2**62 for what `what` names, such as (seed, steps done, prompt id, index, "critique")."""
    text = "\x1f".join(map(str, what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2
