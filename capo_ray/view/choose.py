"""Which responses to show: filters as they stand in a page's address, and what is counted over many responses.

Leaves out: reading a run (see `index`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from urllib.parse import urlencode

from capo_ray.records.ledger import LedgerError
from capo_ray.types import Span
from capo_ray.view.index import Index
from capo_ray.view.records import Entry

PAGE = 25
"""Responses on a page."""
RANGE = re.compile(r"|\s*\d{1,12}\s*|\s*\d{1,12}\s*-\s*|\s*\d{0,12}\s*-\s*\d{1,12}\s*", re.ASCII)
"""FROM-TO, of which either may be left out, a number, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a response must be to be shown; an empty field asks for nothing."""

    answer: str = ""
    """correct, wrong or unverifiable."""
    verdict: str = ""
    """flagged: the vote calls a step wrong; clean: it calls none so; unjudged."""
    truth: str = ""
    """missed: a wrong step that the vote does not flag; alarm: a right step that it does."""
    disagree: str = ""
    """yes: valid critiques differ on a step."""
    unreadable: str = ""
    """yes: a critique failed."""
    tokens: str = ""
    """FROM-TO, both included; either may be left out."""
    steps: str = ""
    """Steps of training, FROM-TO."""
    text: str = ""
    """In the response or the question."""
    problem: str = ""

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> Filter:
        """What the address does not name asks for nothing; what it names beside these is not a filter."""
        return cls(**{field.name: query.get(field.name, "").strip() for field in fields(cls)})

    def query(self) -> str:
        """The part of an address behind `?`."""
        return urlencode({field.name: value for field in fields(self) if (value := getattr(self, field.name))})

    def holds(self, entry: Entry) -> bool:
        """Without the text, which the index does not have."""
        return (
            (not self.answer or entry.answer == self.answer)
            and (not self.verdict or verdict_of(entry) == self.verdict)
            and (not self.truth or (misses(entry) if self.truth == "missed" else alarms(entry)))
            and (not self.disagree or entry.disagree)
            and (not self.unreadable or entry.num_failed > 0)
            and (not self.problem or entry.problem == self.problem)
            and _within(entry.num_tokens, self.tokens)
            and _within(entry.step, self.steps)
        )

    def meaningless(self) -> list[str]:
        """What of it asks for nothing though something is given, a sentence each: ranges that are none."""
        said = []
        for name, bounds in (("Tokens", self.tokens), ("Training steps", self.steps)):
            low, high = (part.strip() for part in (bounds.partition("-")[0], bounds.partition("-")[2]))
            if not RANGE.fullmatch(bounds):
                said.append(
                    f"{name}: {bounds[:40]!r} is no range, and hides nothing; write FROM-TO, FROM- or a number."
                )
            elif low and high and int(low) > int(high):
                said.append(f"{name}: nothing is from {low} to {high}.")
        return said


def _within(value: int, bounds: str) -> bool:
    """What is no range, as while somebody types one, bounds nothing."""
    low, dash, high = bounds.partition("-")
    at_least = int(low) if low.strip().isdecimal() else 0
    if not dash:
        return not low.strip().isdecimal() or value == at_least
    return value >= at_least and (not high.strip().isdecimal() or value <= int(high))


def verdict_of(entry: Entry) -> str:
    if not entry.judged:
        return "unjudged"
    return "flagged" if entry.flagged else "clean"


def _with_truth(entry: Entry) -> Iterator[tuple[bool, bool]]:
    """Per step whether it is right and whether it is flagged; nothing where the truth is not known."""
    if entry.steps_right is not None and entry.judged and len(entry.steps_right) == entry.num_steps:
        yield from ((right, step in entry.flagged) for step, right in enumerate(entry.steps_right))


def misses(entry: Entry) -> bool:
    return any(not right and not flagged for right, flagged in _with_truth(entry))


def alarms(entry: Entry) -> bool:
    return any(right and flagged for right, flagged in _with_truth(entry))


def choose(index: Index, wanted: Filter) -> list[Entry]:
    """In the order of the index. Reads the texts where `wanted` asks for one."""
    kept = [entry for entry in index.entries if wanted.holds(entry)]
    if not wanted.text:
        return kept
    found = {name: _found(index, name, wanted.text) for name in dict.fromkeys(entry.file for entry in kept)}
    return [entry for entry in kept if entry.position in found[entry.file]]


def _found(index: Index, name: str, words: str) -> set[int]:
    try:
        return index.source.found(name, words)
    except LedgerError as error:
        index.lose(name, error)
        return set()


@dataclass(slots=True)
class Written:
    """A step's text, and how often it was written and flagged."""

    text: str
    times: int = 0
    flagged: int = 0
    """By the vote."""
    critiques: int = 0
    """Critiques that flag it, over all responses."""
    known: int = 0
    """Times the truth is known."""
    right: int = 0


def most_flagged(index: Index, most: int = 50) -> list[Written]:
    """Steps by their text, without the space around it: those that the vote has flagged most often first."""
    seen: dict[str, Written] = {}
    for name, entries in index.files().items():
        try:
            texts = index.source.texts(name)
        except LedgerError as error:
            index.lose(name, error)
            continue
        for entry, (text, chars) in zip(entries, texts, strict=False):
            if len(chars) == entry.num_steps:
                _count(entry, text, chars, seen)
    flagged = [written for written in seen.values() if written.critiques]
    return sorted(flagged, key=lambda written: (-written.flagged, -written.critiques, written.text))[:most]


def _count(entry: Entry, text: str, chars: Sequence[Span], seen: dict[str, Written]) -> None:
    known = entry.steps_right is not None and len(entry.steps_right) == len(chars)
    for step, (start, end) in enumerate(chars):
        piece = text[start:end].strip()
        written = seen.get(piece) or seen.setdefault(piece, Written(piece))
        written.times += 1
        written.flagged += step in entry.flagged
        written.critiques += entry.counts[step] if entry.counts else 0
        if known and entry.steps_right is not None:
            written.known += 1
            written.right += entry.steps_right[step]


@dataclass(frozen=True, slots=True)
class Draw:
    """One time that a problem was sampled: the responses of one prompt."""

    step: int
    version: int
    prompt_id: str
    entries: tuple[Entry, ...]

    def share(self, count: Iterable[bool]) -> float:
        held = list(count)
        return sum(held) / len(held) if held else 0.0


def draws(entries: Iterable[Entry], problem: str) -> list[Draw]:
    """Oldest first."""
    groups: dict[tuple[int, str], list[Entry]] = {}
    for entry in entries:
        if entry.problem == problem:
            groups.setdefault((entry.step, entry.prompt_id), []).append(entry)
    return [
        Draw(step, min(entry.version for entry in group), prompt_id, tuple(group))
        for (step, prompt_id), group in sorted(groups.items())
    ]
