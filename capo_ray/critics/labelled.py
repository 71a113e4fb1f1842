"""Responses whose steps have known labels: ProcessBench files, and the tiny world's exact checker.

What a critic is measured on, before a run (critic_bench) and during one (canaries). Leaves out what its flags are worth
against the labels (credit.flags) and sampling from the policy (critic_bench).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.credit.critique import ReferenceKind, reference_of, shorter_reference
from capo_ray.critics.service import Critics
from capo_ray.data.problem import DataError
from capo_ray.types import Critique, JsonDict, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One response to be judged."""

    id: str
    question: str
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]
    """Per step: wrong, right, or None where nobody knows."""
    answer: str = ""
    """The gold answer, where the data has one."""
    solution: str = ""

    @staticmethod
    def of(record: JsonDict) -> Item:
        """What `dataclasses.asdict` and JSON made of one."""
        return Item(**(record | {"steps": tuple(record["steps"]), "labels": tuple(record["labels"])}))

    def as_prompt(self) -> Prompt:
        """Its problem, as one of a run."""
        return Prompt(id=self.id, question=self.question, token_ids=(0,), answer=self.answer, solution=self.solution)

    async def judged_by(self, critics: Critics, *, reference: ReferenceKind, seed: int) -> tuple[Critique, ...]:
        """What critics say of it, asked as they are of a response of a run."""
        prompt = self.as_prompt()
        return await critics.judge(
            self.question,
            reference_of(prompt, reference),
            self.steps,
            response_key=self.id,
            shorter=shorter_reference(prompt, reference),
            seed=seed,
        )


def processbench(path: Path, option: str = "path") -> list[Item]:
    """The .jsonl, .jsonl.gz and .json files of `path`, a file or a folder; `option` is where it was named.

    Raises DataError.
    """
    endings = (".jsonl", ".jsonl.gz", ".json")
    files = sorted(file for file in path.iterdir() if file.name.endswith(endings)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{option}: {path} holds no file that ends in {', '.join(endings)}")
    items = [_processbench(record, where) for file in files for record, where in _records(file, option)]
    if not items:
        raise DataError(f"{option}: {path} is empty")
    names = [item.id for item in items]
    if len(set(names)) < len(names):
        raise DataError(f"{option}: {path} has the id {max(names, key=names.count)!r} more than once")
    return items


def _processbench(record: JsonDict, where: str) -> Item:
    """Steps before the first error are right, those after it unknown: who built on it is nobody's label."""
    steps, label = record.get("steps"), record.get("label")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise DataError(f"{where}: `steps` must be a list of texts")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise DataError(f"{where}: `label` must be the first wrong step, from 0, or -1 for none; got {label!r}")
    if not isinstance(record.get("problem"), str):
        raise DataError(f"{where}: `problem` must be a text")
    labels = [False] * len(steps) if label < 0 else [False] * label + [True] + [None] * (len(steps) - label - 1)
    reference = {name: record.get(name) or "" for name in ("answer", "solution")}
    if odd := [name for name, text in reference.items() if not isinstance(text, str)]:
        raise DataError(f"{where}: `{odd[0]}` must be a text")
    return Item(
        id=str(record.get("id", where)),
        question=record["problem"],
        steps=tuple(steps),
        labels=tuple(labels),
        **reference,
    )


def arithmetic(responses: Sequence[tuple[str, str]]) -> list[Item]:
    """(question, response) pairs of the tiny world, labelled by its checker. Raises DataError."""
    from capo_ray.credit.steps import segment
    from capo_ray.tasks.arithmetic.world import check, parse

    items = []
    for number, (question, response) in enumerate(responses):
        try:
            problem = parse(question)
        except ValueError as error:
            raise DataError(f"response {number}: {error}") from error
        steps = tuple(response[part.start : part.shown_end] for part in segment(response))
        labels = tuple(not right for right in check(problem, response).steps_right)
        items.append(
            Item(
                id=f"arithmetic-{number}",
                question=question,
                steps=steps,
                labels=labels,
                answer=problem.answer,
                solution=problem.solution,
            )
        )
    return items


def read_responses(path: Path) -> list[tuple[str, str]]:
    """The (question, response) pairs of a jsonl file, such as one of a run's `samples/`. Raises DataError."""
    pairs = []
    for record, where in _records(path):
        question, response = record.get("question"), record.get("response")
        if not isinstance(question, str) or not isinstance(response, str):
            raise DataError(f"{where}: `question` and `response` must be texts")
        pairs.append((question, response))
    if not pairs:
        raise DataError(f"path: {path} is empty")
    return pairs


def _records(path: Path, option: str = "path") -> Iterator[tuple[JsonDict, str]]:
    """Records and where they stand. A .json file is one list."""
    if not path.is_file():
        raise DataError(f"{option}: there is no file {path}")
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except OSError as error:
        raise DataError(f"{option}: {path} cannot be read: {error}") from error
    if path.suffix == ".json":
        records = _parsed(text, str(path))
        if not isinstance(records, list):
            raise DataError(f"{path}: must hold a list of records; a file of lines ends in .jsonl")
        for number, record in enumerate(records):
            where = f"{path}, record {number}"
            yield _object(record, where), where
        return
    for number, line in enumerate(text.split(b"\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _object(_parsed(line, where), where), where


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None


def _object(record: Any, where: str) -> JsonDict:
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be a JSON object")
    return record
