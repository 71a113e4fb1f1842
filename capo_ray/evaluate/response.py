"""One response of an evaluation with its grade, and the file that holds one in each line.

A line holds the question, the response and its grade, so that the file needs nothing beside it. Leaves out asking and
grading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capo_ray.data.problem import DataError
from capo_ray.files.lines import cut_to_whole_lines
from capo_ray.types import Answer, Finish

Mode = Literal["greedy", "sampled"]
Key = tuple[str, str, Mode, int]
"""(benchmark, problem, mode, index): what one response is the answer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response with its grade."""

    benchmark: str
    id: str
    mode: Mode
    index: int
    """Which of the responses of its mode to its problem, from 0."""
    question: str
    gold: str
    response: str
    finish: Finish
    num_tokens: int
    answer: Answer
    extracted: str | None
    reason: str | None

    @property
    def key(self) -> Key:
        return self.benchmark, self.id, self.mode, self.index


def read_responses(path: Path) -> list[Response]:
    """Raises DataError."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            found.append(Response(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no response of an evaluation ({error})") from None
    return found


def kept(path: Path) -> dict[Key, Response]:
    """What stands in `path`, after a line that was cut off is removed from it."""
    cut_to_whole_lines(path)
    return {response.key: response for response in read_responses(path)} if path.exists() else {}
