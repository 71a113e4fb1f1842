"""The ledger: every critique of a run and every response that was judged, dropped ones too, for whoever asks later.

    RUN_DIR/critiques/STEP-SHARD.parquet  a row per critique
    RUN_DIR/responses/STEP-SHARD.parquet  a row per response

A shard writes both files when a step is written down, each beside its place and then renamed, the responses last:
where these are there, all is, and nothing is ever changed in them. `scheme` in the metadata of a file is how the run
itself scored (`scheme`). `read` gives the groups back as they were before they were scored, so that they can
be scored in another way, `read_group` one of them. Needs pyarrow where something is written or read. Leaves out:
scoring (see `credit.group`), and cutting a run back to a checkpoint (see `tracking`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from capo_ray.credit.group import Member, Scheme
from capo_ray.records.ledger_columns import CRITIQUES, PROBLEM, RESPONSES, check_row, schemas
from capo_ray.records.scheme import RecordedScheme, scheme_from_json, scheme_to_json
from capo_ray.types import Critique, JsonDict, Prompt, Rollout, Sampling, Step

_NAME = re.compile(r"(\d+)-\d+\.parquet")


class LedgerError(ValueError):
    """There is no ledger that can be read; the message says where it was looked for."""


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

        kinds = schemas()
        for kind in (CRITIQUES, RESPONSES):  # whoever reads begins with responses
            folder = self._run_dir / kind
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{step:06d}-{self._shard}.parquet"
            partial = path.with_suffix(".partial")
            schema = kinds[kind].with_metadata({"scheme": self._scheme})
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


@contextmanager
def reading(*paths: Path) -> Iterator[None]:
    """What stands in a file of a run is anybody's: whatever is raised over it inside is a LedgerError that names it."""
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        said = said if type(error) is ValueError else f"{type(error).__name__}: {said}"
        raise LedgerError(f"{' and '.join(map(str, paths))} cannot be read: {said}") from error


def read(run_dir: Path, *, trust: bool = False) -> Iterator[tuple[RecordedScheme, list[RecordedGroup]]]:
    """The groups of each step of the run, and how it scored them. `trust`: see `scheme`. Raises
    LedgerError."""
    folder = run_dir / RESPONSES
    found = {path: int(name[1]) for path in folder.glob("*") if (name := _NAME.fullmatch(path.name))}
    if not found:
        raise LedgerError(
            f"{run_dir} holds no ledger (no {folder / 'STEP-SHARD.parquet'}): name the directory of a run with critics "
            "that was made with tracking.ledger=true and has finished a step"
        )
    for _, paths in groupby(sorted(found, key=lambda path: (found[path], path)), key=lambda path: found[path]):
        files = [_read(path, run_dir / CRITIQUES / path.name, trust=trust) for path in paths]
        yield files[0][0], [group for _, groups in files for group in groups]


def read_group(
    run_dir: Path, name: str, prompt_id: str, *, trust: bool = False
) -> tuple[RecordedScheme, RecordedGroup]:
    """One group of the file `name` (STEP-SHARD.parquet), and how the run scored it. `trust`: see `scheme`.
    Raises LedgerError."""
    scheme, groups = _read(run_dir / RESPONSES / name, run_dir / CRITIQUES / name, prompt_id, trust=trust)
    if not groups:
        raise LedgerError(f"{run_dir / RESPONSES / name} holds no response to {prompt_id!r}")
    return scheme, groups[0]


def _read(
    responses: Path, critiques: Path, prompt_id: str | None = None, *, trust: bool
) -> tuple[RecordedScheme, list[RecordedGroup]]:
    """What one shard wrote of one step, or of one prompt in it."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise LedgerError(f"reading a ledger needs pyarrow ({error}); pip install '.[ledger]' in a checkout") from error
    wanted = None if prompt_id is None else [("prompt_id", "==", prompt_id)]
    with reading(responses, critiques):
        tables = pq.read_table(responses, filters=wanted), pq.read_table(critiques, filters=wanted)
        scheme = scheme_from_json(scheme_in(tables[0].schema.metadata), trust=trust)
        return scheme, _groups(tables[0].to_pylist(), tables[1].to_pylist())


def scheme_in(metadata: Mapping[bytes, bytes] | None) -> bytes:
    """Of a Parquet file. Raises ValueError."""
    if not metadata or b"scheme" not in metadata:
        raise ValueError("it does not say how the run scored (no `scheme` in its metadata)")
    return metadata[b"scheme"]


def _groups(responses: Sequence[JsonDict], critiques: Sequence[JsonDict]) -> list[RecordedGroup]:
    of: dict[tuple[int, str, int], list[JsonDict]] = defaultdict(list)
    for row in critiques:
        check_row(row, CRITIQUES)
        of[row["step"], row["prompt_id"], row["response"]].append(row)
    made: dict[tuple[int, str], list[tuple[JsonDict, Member]]] = defaultdict(list)
    for row in responses:
        check_row(row, RESPONSES)
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
    chars, tokens = ([(first, end) for first, end in row[name]] for name in ("step_chars", "step_tokens"))
    if num_tokens != len(row["char_ends"]):  # before as many numbers are made
        raise ValueError(f"{row['prompt_id']}/{row['response']}: {num_tokens} tokens, and {len(row['char_ends'])} ends")
    for spans, length in ((chars, len(text)), (tokens, num_tokens)):
        places = [0, *(place for span in spans for place in span), length]
        if any(here > there for here, there in pairwise(places)):
            raise ValueError(f"{row['prompt_id']}/{row['response']}: steps that are not within it, in their order")
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
