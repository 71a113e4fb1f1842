"""What a check comes to: a state, what was found, and what to do about it.

Leaves out the checks (beside this) and how they are shown (__main__).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`warn`: the run starts and may disappoint; `fail`: it cannot start, or will end early."""

    check: str
    state: State
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert (self.state == "ok") == (not self.fix), f"{self.check}: what is not well needs a fix, got {self.fix!r}"


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, state="ok", found=found)


def warn(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, state="warn", found=found, fix=fix)


def fail(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, state="fail", found=found, fix=fix)


def listed(names: list[str], most: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
