"""What is shown of a response: `Entry` in an index of all, `Response` in full. Leaves out: where it is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from capo_ray.types import Critique, Span


@dataclass(frozen=True, slots=True)
class Entry:
    """One response in the index."""

    file: str
    """Its file's name, STEP-SHARD."""
    position: int
    """Its row in that file."""
    step: int
    prompt_id: str
    index: int
    answer: str
    finish: str
    version: int
    """The oldest policy version that sampled it; -1: not known."""
    num_tokens: int
    num_steps: int
    judged: bool
    """Whether enough critiques are valid."""
    flagged: tuple[int, ...]
    """Steps that the vote calls wrong; none where it is not judged."""
    counts: tuple[int, ...]
    """Flags per step."""
    num_valid: int
    num_failed: int
    disagree: bool
    """Whether two valid critiques differ on a step."""
    steps_right: tuple[bool, ...] | None

    @property
    def problem(self) -> str:
        """The prompt's id without the draw it belongs to: `gsm8k-7@12.1` is the problem gsm8k-7."""
        return problem_of(self.prompt_id)

    @property
    def key(self) -> tuple[int, str, int]:
        return self.step, self.prompt_id, self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response in full."""

    entry: Entry
    question: str
    gold: str
    solution: str
    text: str
    char_ends: tuple[int, ...]  # [T]
    chars: tuple[Span, ...]  # [S]
    tokens: tuple[Span, ...]  # [S]
    critiques: tuple[Critique, ...]
    rewards: tuple[float, ...]  # [T]
    advantages: tuple[float, ...] | None  # [T]
    """None: dropped from its group."""
    weights: tuple[float, ...] | None = None  # [S]
    """The share of the process penalty that each step pays; None where it is not known."""
    vote: str = ""
    extracted: str | None = None
    """What the verifier took for its final answer."""
    reason: str | None = None
    """Why it is not correct, as the verifier says."""


class Source(Protocol):
    """Where responses are recorded."""

    def files(self) -> list[str]:
        """Names of the complete files."""
        ...

    def entries(self, name: str) -> list[Entry]: ...

    def texts(self, name: str) -> list[tuple[str, list[Span]]]:
        """Text and the steps' characters of each response of a file, in order."""
        ...

    def found(self, name: str, words: str) -> set[int]:
        """Positions of the responses whose text or question holds `words`, whatever their case."""
        ...

    def response(self, entry: Entry) -> Response: ...


def problem_of(prompt_id: str) -> str:
    return prompt_id.rpartition("@")[0] or prompt_id
