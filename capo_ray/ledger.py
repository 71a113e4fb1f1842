"""The ledger: every critique of a run and every response that was judged, dropped ones too, for whoever asks later.

    RUN_DIR/critiques/STEP-SHARD.parquet  a row per critique
    RUN_DIR/responses/STEP-SHARD.parquet  a row per response

A shard writes both files when a step is written down, each beside its place and then renamed, the responses last: where
these are there, all is, and nothing is ever changed in them. `scheme` in the metadata of a file is how the run
itself scored. `read` gives the groups back as they were before they were scored, so that they can be scored in another
way, `read_group` one of them. Needs pyarrow where something is written or read. Leaves out: scoring (see
`credit.group`), and cutting a run back to a checkpoint (see `tracking`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.credit.group import Member, Scheme
from capo_ray.credit.reward import Outcome
from capo_ray.types import Critique, JsonDict, Prompt, Rollout, Sampling, Step

if TYPE_CHECKING:
    import pyarrow

CRITIQUES, RESPONSES = "critiques", "responses"
PROBLEM = ("question", "gold", "solution")
"""Columns that are equal in all responses to one prompt; the file holds each value once."""
_NAME = re.compile(r"(\d+)-\d+\.parquet")


class LedgerError(ValueError):
    """There is no ledger that can be read; the message says where it was looked for."""


def _schemas() -> dict[str, pyarrow.Schema]:
    import pyarrow as pa

    name, ints = pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.int32())
    spans = pa.list_(ints)
    key = [("step", pa.int32()), ("prompt_id", name), ("response", pa.int32())]
    critique = [
        ("critique", pa.int32()),
        ("prompt_hash", pa.string()),
        ("critic", name),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
        ("outcome", name),
        ("wrong_steps", ints),
        ("says_correct", pa.bool_()),
        ("num_dropped", pa.int32()),
        ("tokens", pa.int32()),
        ("from_cache", pa.bool_()),
        ("text", pa.string()),
    ]
    response = [
        ("answer", name),
        ("extracted", pa.string()),
        ("reason", name),
        ("finish", name),
        ("versions", ints),
        ("num_tokens", pa.int32()),
        ("num_critiques", pa.int32()),
        ("spare", pa.bool_()),
        ("step_chars", spans),
        ("step_tokens", spans),
        ("steps_right", pa.list_(pa.bool_())),
        ("char_ends", ints),
        ("text", pa.string()),
        *((field, name) for field in PROBLEM),
    ]
    return {CRITIQUES: pa.schema([*key, *critique]), RESPONSES: pa.schema([*key, *response])}


class Ledger:
    """The part of a run's ledger that one aggregator shard writes."""

    def __init__(self, run_dir: Path, *, shard: int, scheme: Scheme, sampling: Sampling) -> None:
        """`sampling` is how critics are sampled."""
        self._run_dir = run_dir
        self._shard = shard
        self._scheme = scheme_to_json(scheme)
        self._sampling = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        self._rows: dict[int, dict[str, list[JsonDict]]] = {}
        """By step, then by kind of file."""

    def add(
        self,
        step: int,
        prompt: Prompt,
        members: Sequence[Member],
        steps_right: Sequence[tuple[bool, ...] | None] | None = None,
    ) -> None:
        """Take in a group as it is before it is scored. `steps_right` has the truth per member where it is known."""
        rows = self._rows.setdefault(step, {RESPONSES: [], CRITIQUES: []})
        texts = (_encodable(text) for text in (prompt.question, prompt.answer, prompt.solution))
        problem = dict(zip(PROBLEM, texts, strict=True))
        for member, right in zip(members, steps_right or [None] * len(members), strict=True):
            key = {"step": step, "prompt_id": prompt.id, "response": member.rollout.index}
            rows[RESPONSES].append(key | _response(member) | problem | {"steps_right": right})
            rows[CRITIQUES] += [
                key | self._sampling | {"critique": number} | _critique(critique)
                for number, critique in enumerate(member.critiques)
            ]

    def write(self, step: int, spare: Collection[str] = ()) -> None:
        """Write what was taken in of `step`; `spare` names the prompts whose groups were replaced by others."""
        rows = self._rows.get(step)
        if rows is None:
            return
        for row in rows[RESPONSES]:
            row["spare"] = row["prompt_id"] in spare
        import pyarrow as pa
        import pyarrow.parquet as pq

        schemas = _schemas()
        for kind in (CRITIQUES, RESPONSES):  # whoever reads begins with responses
            folder = self._run_dir / kind
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{step:06d}-{self._shard}.parquet"
            partial = path.with_suffix(".partial")
            schema = schemas[kind].with_metadata({"scheme": self._scheme})
            pq.write_table(pa.Table.from_pylist(rows[kind], schema=schema), partial, compression="zstd")
            partial.rename(path)
        del self._rows[step]


def _encodable(text: str) -> str:
    """`text` of a data set with what no UTF-8 has (lone surrogates) replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _critique(critique: Critique) -> JsonDict:
    return {
        "prompt_hash": critique.prompt_hash,
        "critic": critique.critic,
        "seed": critique.seed,
        "outcome": critique.outcome,
        "wrong_steps": critique.wrong_steps,
        "says_correct": critique.says_correct,
        "num_dropped": critique.num_dropped,
        "tokens": critique.num_tokens,
        "from_cache": critique.cached,
        "text": critique.text,
    }


def _response(member: Member) -> JsonDict:
    rollout = member.rollout
    return {
        "answer": member.answer,
        "extracted": member.extracted,
        "reason": member.reason,
        "finish": rollout.finish,
        "versions": rollout.versions,
        "num_tokens": len(rollout.token_ids),
        "num_critiques": len(member.critiques),
        "step_chars": [step.chars for step in member.steps],
        "step_tokens": [step.tokens for step in member.steps],
        "char_ends": rollout.char_ends,
        "text": rollout.text,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """One group of a run as it was before it was scored: token ids and log-probabilities are not recorded, and the
    text of a step has its delimiter."""

    step: int
    prompt_id: str
    question: str
    gold: str
    """The final answer that the verifier compares with."""
    solution: str
    members: tuple[Member, ...]
    steps_right: tuple[tuple[bool, ...] | None, ...]
    """The truth of each member's steps; None where the task knows none."""
    spare: bool = False
    """Whether another was trained on in its place, since no token of it had an advantage."""


def read(run_dir: Path) -> Iterator[tuple[Scheme, list[RecordedGroup]]]:
    """The groups of each step of the run, and how it scored them. Raises LedgerError."""
    folder = run_dir / RESPONSES
    found = {path: int(name[1]) for path in folder.glob("*") if (name := _NAME.fullmatch(path.name))}
    if not found:
        raise LedgerError(
            f"{run_dir} holds no ledger (no {folder / 'STEP-SHARD.parquet'}): name the directory of a run with critics "
            "that was made with tracking.ledger=true and has finished a step"
        )
    for _, paths in groupby(sorted(found, key=lambda path: (found[path], path)), key=lambda path: found[path]):
        files = [_read(path, run_dir / CRITIQUES / path.name) for path in paths]
        yield files[0][0], [group for _, groups in files for group in groups]


def read_group(run_dir: Path, name: str, prompt_id: str) -> tuple[Scheme, RecordedGroup]:
    """One group of the file `name` (STEP-SHARD.parquet), and how the run scored it. Raises LedgerError."""
    scheme, groups = _read(run_dir / RESPONSES / name, run_dir / CRITIQUES / name, prompt_id)
    if not groups:
        raise LedgerError(f"{run_dir / RESPONSES / name} holds no response to {prompt_id!r}")
    return scheme, groups[0]


def _read(responses: Path, critiques: Path, prompt_id: str | None = None) -> tuple[Scheme, list[RecordedGroup]]:
    """What one shard wrote of one step, or of one prompt in it."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise LedgerError(f"reading a ledger needs pyarrow ({error}); pip install '.[ledger]' in a checkout") from error
    wanted = None if prompt_id is None else [("prompt_id", "==", prompt_id)]
    try:
        tables = pq.read_table(responses, filters=wanted), pq.read_table(critiques, filters=wanted)
        scheme = scheme_from_json(tables[0].schema.metadata[b"scheme"])
        return scheme, _groups(tables[0].to_pylist(), tables[1].to_pylist())
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"{responses} and {critiques} cannot be read: {type(error).__name__}: {error}") from error


def _groups(responses: Sequence[JsonDict], critiques: Sequence[JsonDict]) -> list[RecordedGroup]:
    of: dict[tuple[int, str, int], list[JsonDict]] = defaultdict(list)
    for row in critiques:
        of[row["step"], row["prompt_id"], row["response"]].append(row)
    made: dict[tuple[int, str], list[tuple[JsonDict, Member]]] = defaultdict(list)
    for row in responses:
        found = of[row["step"], row["prompt_id"], row["response"]]
        if len(found) != row["num_critiques"]:
            raise ValueError(
                f"step {row['step']}, {row['prompt_id']}/{row['response']}: {len(found)} critiques are recorded, "
                f"{row['num_critiques']} were made"
            )
        found.sort(key=lambda critique: critique["critique"])
        made[row["step"], row["prompt_id"]].append((row, _member(row, found)))
    return [
        RecordedGroup(
            step=step,
            prompt_id=name,
            **{field: group[0][0][field] for field in PROBLEM},
            members=tuple(member for _, member in group),
            steps_right=tuple(None if row["steps_right"] is None else tuple(row["steps_right"]) for row, _ in group),
            spare=group[0][0]["spare"],
        )
        for (step, name), group in made.items()
    ]


def _member(row: JsonDict, critiques: Sequence[JsonDict]) -> Member:
    num_tokens, text = row["num_tokens"], row["text"]
    chars, tokens = ([tuple(span) for span in row[name]] for name in ("step_chars", "step_tokens"))
    return Member(
        rollout=Rollout(
            prompt_id=row["prompt_id"],
            index=row["response"],
            text=text,
            finish=row["finish"],
            token_ids=(0,) * num_tokens,
            logprobs=(0.0,) * num_tokens,
            char_ends=tuple(row["char_ends"]),
            versions=tuple(row["versions"]),
        ),
        steps=tuple(
            Step(text=text[span[0] : span[1]], chars=span, tokens=held)
            for span, held in zip(chars, tokens, strict=True)
        ),
        critiques=tuple(
            Critique(
                text=critique["text"],
                outcome=critique["outcome"],
                wrong_steps=tuple(critique["wrong_steps"]),
                says_correct=critique["says_correct"],
                num_dropped=critique["num_dropped"],
                critic=critique["critic"],
                num_tokens=critique["tokens"],
                cached=critique["from_cache"],
                seed=critique["seed"],
                prompt_hash=critique["prompt_hash"],
            )
            for critique in critiques
        ),
        answer=row["answer"],
        extracted=row.get("extracted"),
        reason=row.get("reason"),
    )


def scheme_to_json(scheme: Scheme) -> str:
    return json.dumps(asdict(scheme), default=lambda pattern: pattern.pattern)


def scheme_from_json(text: str | bytes) -> Scheme:
    """Raises TypeError or ValueError for what is no scheme."""
    values: dict[str, Any] = json.loads(text)
    outcome: Mapping[str, Any] = values.pop("outcome", {})
    pattern = outcome.get("format_pattern")
    given = {**outcome, "format_pattern": re.compile(pattern) if pattern else None}
    return Scheme(**values, outcome=Outcome(**given))
