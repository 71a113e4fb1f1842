"""What is shown of a response: `Entry` in an index of all, `Response` in full; each sound, or not made.

What a file holds is anybody's, and a page is made of it, so both are looked at when they are made: kinds, lengths and
places. Leaves out: where they are read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any, Protocol

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

    def __post_init__(self) -> None:
        """Raises ValueError."""
        _must(all(isinstance(text, str) for text in (self.prompt_id, self.answer, self.finish)), "names")
        numbers = (self.step, self.index, self.num_tokens, self.num_steps, self.num_valid, self.num_failed)
        _must(_are_numbers((*numbers, *self.flagged, *self.counts, self.version + 1)), "numbers")
        _must(all(step < self.num_steps for step in self.flagged), "flagged steps")
        _must(len(self.counts) in (0, self.num_steps), "votes")
        _must(all(type(right) is bool for right in self.steps_right or ()), "truth")

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

    def __post_init__(self) -> None:
        """Raises ValueError."""
        given = [text for text in (self.extracted, self.reason) if text is not None]
        texts = [self.question, self.gold, self.solution, self.text, *given]
        texts += [text for one in self.critiques for text in (one.text, one.outcome, one.critic)]
        _must(all(isinstance(text, str) for text in texts), "texts")
        num_tokens = len(self.rewards)
        for row in (self.rewards, self.advantages, self.weights):
            _must(all(type(value) in (int, float) and isfinite(value) for value in row or ()), "rewards")
        _must(len(self.char_ends) == num_tokens, "ends of tokens")
        _must(self.advantages is None or len(self.advantages) == num_tokens, "advantages")
        _must(len(self.chars) == len(self.tokens) == self.entry.num_steps, "steps")
        _must(not self.weights or len(self.weights) == self.entry.num_steps, "weights")
        _ascend(self.char_ends, len(self.text))
        _ascend([place for span in self.chars for place in span], len(self.text))
        _ascend([place for span in self.tokens for place in span], num_tokens)
        for critique in self.critiques:
            _must(_are_numbers((*critique.wrong_steps, critique.num_tokens)), "critiques")


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"a response whose {what} are not sound")


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whole ones, from 0 to what a file may say of anything."""
    return all(type(value) is int and 0 <= value < 1 << 40 for value in values)


def _ascend(places: Sequence[Any], end: int) -> None:
    sound = _are_numbers(places) and all(here <= there for here, there in pairwise([*places, end]))
    _must(sound, "steps or tokens")


class Source(Protocol):
    """Where responses are recorded."""

    def files(self) -> list[str]:
        """Names of the complete files."""
        ...

    def stamp(self, name: str) -> object:
        """Another one whenever the file has been written anew."""
        ...

    def entries(self, name: str) -> list[Entry]:
        """This and what follows raise LedgerError that names the file, for whatever cannot be read."""
        ...

    def texts(self, name: str) -> list[tuple[str, list[Span]]]:
        """Text and the steps' characters of each response of a file, in order."""
        ...

    def found(self, name: str, words: str) -> set[int]:
        """Positions of the responses whose text or question holds `words`, whatever their case."""
        ...

    def response(self, entry: Entry) -> Response: ...


def problem_of(prompt_id: str) -> str:
    return prompt_id.rpartition("@")[0] or prompt_id
