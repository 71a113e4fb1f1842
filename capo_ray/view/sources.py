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
from capo_ray.ledger import CRITIQUES, RESPONSES, LedgerError, RecordedGroup, read_group, scheme_from_json
from capo_ray.tally import count_group
from capo_ray.tracking import STEP_FILE
from capo_ray.types import FAILED_OUTCOMES, Critique, JsonDict, Span
from capo_ray.view.records import Entry, Response, Source

ScoredGroup = tuple[Scheme, RecordedGroup, GroupScore]


def source_of(run_dir: Path) -> Source:
    """The ledger where there is one, or where nothing is yet."""
    samples = Samples(run_dir)
    return samples if samples.files() and not (run_dir / RESPONSES).is_dir() else Ledger(run_dir)


def _files(folder: Path, ending: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{ending}") if STEP_FILE.fullmatch(path.name))


@dataclass(slots=True)
class Ledger:
    """Every response of a run with critics, from its Parquet files."""

    run_dir: Path
    _scored: Callable[[str, str], ScoredGroup] = field(init=False)

    def __post_init__(self) -> None:
        self._scored = lru_cache(maxsize=64)(self._score)

    def files(self) -> list[str]:
        return _files(self.run_dir / RESPONSES, ".parquet")

    def _table(self, kind: str, name: str, columns: Sequence[str]) -> Any:
        import pyarrow.parquet as pq

        path = self.run_dir / kind / name
        try:
            file = pq.ParquetFile(path)
            if lacking := sorted(set(columns) - set(file.schema_arrow.names)):
                raise ValueError(f"it has no {' and no '.join(lacking)}; another version of capo_ray has written it")
            return file.read(columns=list(columns))
        except (OSError, ValueError) as error:
            raise LedgerError(f"{path} cannot be read: {error}") from error

    def entries(self, name: str) -> list[Entry]:
        """Votes as the run's own scheme does."""
        key = ("step", "prompt_id", "response")
        table = self._table(
            RESPONSES, name, (*key, "answer", "finish", "versions", "num_tokens", "step_tokens", "steps_right")
        )
        scheme = scheme_from_json(table.schema.metadata[b"scheme"])
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
        return [(row["text"], row["step_chars"]) for row in _rows(self._table(RESPONSES, name, ("text", "step_chars")))]

    def found(self, name: str, words: str) -> set[int]:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._table(RESPONSES, name, ("text", "question"))
        hits = [
            pc.match_substring(table[column].cast(pa.string()), words, ignore_case=True)
            for column in table.schema.names
        ]
        return set(pc.indices_nonzero(pc.or_(*hits)).to_pylist())

    def response(self, entry: Entry) -> Response:
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
        scheme, group = read_group(self.run_dir, name, prompt_id)
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
                scheme, group = read_group(self.run_dir, name, prompt_id)
                if group.spare:
                    continue  # the trainer did not see it
                tallies.append(count_group(score_group(group.members, scheme), [None] * len(group.members)))
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

    def _lines(self, name: str) -> list[JsonDict]:
        path = self.run_dir / "samples" / name
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise LedgerError(f"{path} cannot be read: {type(error).__name__}: {error}") from error

    def entries(self, name: str) -> list[Entry]:
        return [_sampled(name, position, line) for position, line in enumerate(self._lines(name))]

    def texts(self, name: str) -> list[tuple[str, list[Span]]]:
        return [
            (line["response"], [(step["start"], step["end"]) for step in line["steps"]]) for line in self._lines(name)
        ]

    def found(self, name: str, words: str) -> set[int]:
        return {
            position
            for position, line in enumerate(self._lines(name))
            if words.lower() in line["response"].lower() or words.lower() in line["question"].lower()
        }

    def response(self, entry: Entry) -> Response:
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
