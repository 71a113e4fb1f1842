"""The two places where a run records responses: the ledger of a run with critics, and the samples of any run.

An entry of the index holds no text; text is read when it is asked for. Credit is computed by the path that training
takes, so a KL term in the reward is not in it. Leaves out: which files have been read already (see `index`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from capo_ray.credit.advantage import algorithm_of
from capo_ray.credit.group import GroupScore, Scheme, score_group
from capo_ray.credit.vote import vote
from capo_ray.learn.batch import centre_and_spread
from capo_ray.records.ledger import RecordedGroup, read_group, reading, scheme_in
from capo_ray.records.ledger_columns import CRITIQUES, RESPONSES
from capo_ray.records.scheme import RecordedScheme, scheme_from_json
from capo_ray.records.tally import count_group
from capo_ray.records.tracking import STEP_FILE
from capo_ray.types import FAILED_OUTCOMES, Critique, JsonDict, Span
from capo_ray.view.records import Entry, Response, Source

ScoredGroup = tuple[Scheme, RecordedGroup, GroupScore]


def source_of(run_dir: Path, *, trust: bool = False) -> Source:
    """The ledger where there is one, or where nothing is yet. `trust`: see `records.scheme`."""
    samples = Samples(run_dir)
    return samples if samples.files() and not (run_dir / RESPONSES).is_dir() else Ledger(run_dir, trust)


def _files(folder: Path, ending: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{ending}") if STEP_FILE.fullmatch(path.name))


def _stamp(*paths: Path) -> tuple[tuple[int, int], ...]:
    states = [path.stat() for path in paths if path.exists()]
    return tuple((state.st_mtime_ns, state.st_size) for state in states)


@dataclass(slots=True)
class Ledger:
    """Every response of a run with critics, from its Parquet files."""

    run_dir: Path
    trust: bool = False
    replaced: set[str] = field(default_factory=set)
    """Code of the author's own that the run voted or paid with, and that is not run."""
    _scored: Callable[[str, str], ScoredGroup] = field(init=False)

    def __post_init__(self) -> None:
        self._scored = lru_cache(maxsize=64)(self._score)

    def files(self) -> list[str]:
        return _files(self.run_dir / RESPONSES, ".parquet")

    def stamp(self, name: str) -> object:
        return _stamp(self.run_dir / RESPONSES / name, self.run_dir / CRITIQUES / name)

    def _safe(self, recorded: RecordedScheme) -> Scheme:
        self.replaced.update(recorded.replaced.values())
        return recorded.scheme

    def _table(self, kind: str, name: str, columns: Sequence[str]) -> Any:
        import pyarrow.parquet as pq

        path = self.run_dir / kind / name
        with reading(path):
            file = pq.ParquetFile(path)
            if lacking := sorted(set(columns) - set(file.schema_arrow.names)):
                raise ValueError(f"it has no {' and no '.join(lacking)}; another version of capo_ray has written it")
            return file.read(columns=list(columns))

    def entries(self, name: str) -> list[Entry]:
        """Votes as the run's own scheme does."""
        with reading(self.run_dir / RESPONSES / name):
            return self._entries(name)

    def _entries(self, name: str) -> list[Entry]:
        key = ("step", "prompt_id", "response")
        table = self._table(
            RESPONSES, name, (*key, "answer", "finish", "versions", "num_tokens", "step_tokens", "steps_right")
        )
        scheme = self._safe(scheme_from_json(scheme_in(table.schema.metadata), trust=self.trust))
        said: dict[tuple[int, str, int], list[Critique]] = {}
        for row in _rows(self._table(CRITIQUES, name, (*key, "outcome", "wrong_steps"))):
            critique = Critique(text="", outcome=row["outcome"], wrong_steps=tuple(row["wrong_steps"]))
            said.setdefault((row["step"], row["prompt_id"], row["response"]), []).append(critique)
        made = []
        for position, row in enumerate(_rows(table)):
            step, prompt_id, index = row["step"], row["prompt_id"], row["response"]
            verdict = vote(said.get((step, prompt_id, index), ()), len(row["step_tokens"]), scheme.vote)
            judged = verdict.num_valid >= max(scheme.min_valid_critiques, 1)
            made.append(
                Entry(
                    file=name, position=position, step=step, prompt_id=prompt_id, index=index, answer=row["answer"],
                    finish=row["finish"], version=min(row["versions"]), num_tokens=row["num_tokens"],
                    num_steps=len(row["step_tokens"]), judged=judged,
                    flagged=verdict.wrong_steps if judged else (), counts=verdict.counts,
                    num_valid=verdict.num_valid, num_failed=verdict.num_invalid,
                    disagree=any(0 < count < verdict.num_valid for count in verdict.counts),
                    steps_right=None if row["steps_right"] is None else tuple(row["steps_right"]),
                )
            )  # fmt: skip
        return made

    def texts(self, name: str) -> list[tuple[str, list[Span]]]:
        with reading(self.run_dir / RESPONSES / name):
            rows = _rows(self._table(RESPONSES, name, ("text", "step_chars")))
            return [(str(row["text"]), [(first, end) for first, end in row["step_chars"]]) for row in rows]

    def found(self, name: str, words: str) -> set[int]:
        import pyarrow as pa
        import pyarrow.compute as pc

        with reading(self.run_dir / RESPONSES / name):
            table = self._table(RESPONSES, name, ("text", "question"))
            hits = [
                pc.match_substring(table[column].cast(pa.string()), words, ignore_case=True)
                for column in table.schema.names
            ]
            return set(pc.indices_nonzero(pc.or_(*hits)).to_pylist())

    def response(self, entry: Entry) -> Response:
        with reading(self.run_dir / RESPONSES / entry.file):
            return self._response(entry)

    def _response(self, entry: Entry) -> Response:
        scheme, group, score = self._scored(entry.file, entry.prompt_id)
        at = next(m for m, member in enumerate(group.members) if member.rollout.index == entry.index)
        scored = score.members[at]
        return Response(
            entry=entry,
            question=group.question,
            gold=group.gold,
            solution=group.solution,
            text=scored.rollout.text,
            char_ends=scored.rollout.char_ends,
            chars=tuple(step.chars for step in scored.steps),
            tokens=tuple(step.tokens for step in scored.steps),
            critiques=scored.critiques,
            rewards=scored.token_rewards,
            advantages=score.advantages[at],
            weights=scored.verdict.weights if scored.verdict else None,
            vote=scheme.vote,
            extracted=group.members[at].extracted,
            reason=group.members[at].reason,
        )

    def _score(self, name: str, prompt_id: str) -> ScoredGroup:
        """The group and its credit as the run gave it."""
        recorded, group = read_group(self.run_dir, name, prompt_id, trust=self.trust)
        scheme = self._safe(recorded)
        score = score_group(group.members, scheme)
        if not algorithm_of(scheme.advantage).over_batch:
            return scheme, group, score
        centre, spread = self._batch(name.partition("-")[0])
        rows = tuple(row and tuple((value - centre) / spread for value in row) for row in score.advantages)
        return scheme, group, replace(score, advantages=rows)

    def _batch(self, step: str) -> tuple[float, float]:
        """Mean and spread of the advantages of a whole step, where they are standardised over it."""
        tallies = []
        for name in (name for name in self.files() if name.partition("-")[0] == step):
            for prompt_id in dict.fromkeys(entry.prompt_id for entry in self.entries(name)):
                recorded, group = read_group(self.run_dir, name, prompt_id, trust=self.trust)
                if group.spare:
                    continue  # the trainer did not see it
                score = score_group(group.members, self._safe(recorded))
                tallies.append(count_group(score, [None] * len(group.members)))
        return centre_and_spread(tallies)


def _rows(table: Any) -> Iterator[JsonDict]:
    """Rows as dicts, made from columns, which is faster than `to_pylist`."""
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


@dataclass(slots=True)
class Samples:
    """The responses that a run without a ledger has kept."""

    run_dir: Path

    def files(self) -> list[str]:
        return _files(self.run_dir / "samples", ".jsonl")

    def stamp(self, name: str) -> object:
        return _stamp(self.run_dir / "samples" / name)

    def _lines(self, name: str) -> list[JsonDict]:
        return [json.loads(line) for line in (self.run_dir / "samples" / name).read_bytes().splitlines()]

    def entries(self, name: str) -> list[Entry]:
        with reading(self.run_dir / "samples" / name):
            return [_sampled(name, position, line) for position, line in enumerate(self._lines(name))]

    def texts(self, name: str) -> list[tuple[str, list[Span]]]:
        with reading(self.run_dir / "samples" / name):
            return [
                (str(line["response"]), [(step["start"], step["end"]) for step in line["steps"]])
                for line in self._lines(name)
            ]

    def found(self, name: str, words: str) -> set[int]:
        with reading(self.run_dir / "samples" / name):
            return {
                position
                for position, line in enumerate(self._lines(name))
                if words.lower() in line["response"].lower() or words.lower() in line["question"].lower()
            }

    def response(self, entry: Entry) -> Response:
        with reading(self.run_dir / "samples" / entry.file):
            return self._response(entry)

    def _response(self, entry: Entry) -> Response:
        line = self._lines(entry.file)[entry.position]
        return Response(
            entry=entry,
            question=line["question"],
            gold=line["gold"],
            solution=line["solution"],
            text=line["response"],
            char_ends=tuple(line["char_ends"]),
            chars=tuple((step["start"], step["end"]) for step in line["steps"]),
            tokens=tuple((step["tokens"][0], step["tokens"][1]) for step in line["steps"]),
            critiques=tuple(
                Critique(text=c["text"], outcome=c["outcome"], wrong_steps=tuple(c["wrong_steps"]), critic=c["critic"])
                for c in line["critiques"]
            ),
            rewards=tuple(line["token_rewards"]),
            advantages=None if line["advantages"] is None else tuple(line["advantages"]),
            extracted=line.get("extracted"),
            reason=line.get("reason"),
        )


def _sampled(name: str, position: int, line: JsonDict) -> Entry:
    valid = sum(c["outcome"] == "ok" for c in line["critiques"])
    counts = tuple(line["votes"] or ())
    return Entry(
        file=name, position=position, step=line["step"], prompt_id=line["prompt_id"], index=line["index"],
        answer=line["answer"], finish=line["finish"], version=min(line["versions"]),
        num_tokens=len(line["token_rewards"]), num_steps=len(line["steps"]), judged=line["wrong_steps"] is not None,
        flagged=tuple(line["wrong_steps"] or ()),
        counts=counts, num_valid=valid, num_failed=sum(c["outcome"] in FAILED_OUTCOMES for c in line["critiques"]),
        disagree=any(0 < count < valid for count in counts),
        steps_right=None if line["steps_right"] is None else tuple(line["steps_right"]),
    )  # fmt: skip
