"""`python -m capo_ray.credit`: the method on recorded responses, without any engine.

A line in is a group, a line out is a response:
    {"id", "responses": [{"text" and/or "token_ids", "outcome": 0|1, "critiques": [str, ...]}]}
    {"id", "index", "steps": [{"start", "end", "tokens": [first, end]}], "valid", "invalid", "votes": {"step": count},
     "wrong_steps", "kept", "token_rewards", "advantages"}
A response that its group drops (too few valid critiques) says "kept": false: its rewards are those of its outcome
alone, its advantages are 0. A bad line is reported on standard error and skipped; the exit code is then 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from capo_ray.arguments import Setting, asks_for_help, listed, number, one_of, read, text, whole
from capo_ray.credit.advantage import ALGORITHMS, algorithm_of
from capo_ray.credit.group import CAPO, GroupScore, Member, Scheme, Unjudged, score_group
from capo_ray.credit.recorded import Tokens, read_response, short
from capo_ray.credit.steps import SegmenterKind, delimiter
from capo_ray.credit.vote import Vote, check_vote
from capo_ray.files.output import to_stdout
from capo_ray.types import FAILED_OUTCOMES


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def read_group(line: bytes, tokens: Tokens, between: re.Pattern[str]) -> tuple[Any, list[Member]]:
    """The id and members of one line. Raises ValueError with the reason why it cannot be read."""
    try:
        group = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(group, dict) or "id" not in group:
        raise ValueError("a line must be an object with id and responses")
    responses = group.get("responses")
    if not isinstance(responses, list) or not responses:
        raise ValueError(f"responses must be a list of at least one response, got {short(responses)}")
    members = []
    for index, entry in enumerate(responses):
        try:
            members.append(read_response(entry, index, tokens, between))
        except ValueError as error:
            raise ValueError(f"response {index}: {error}") from None
    return group["id"], members


def rows(group_id: Any, score: GroupScore) -> Iterator[str]:
    """One line of JSON for each response of a group."""
    for index, (scored, advantages) in enumerate(zip(score.members, score.advantages, strict=True)):
        counts = scored.verdict.counts if scored.verdict else ()
        row = {
            "id": group_id,
            "index": index,
            "steps": [{"start": s.chars[0], "end": s.chars[1], "tokens": s.tokens} for s in scored.steps],
            "valid": sum(critique.outcome == "ok" for critique in scored.critiques),
            "invalid": sum(critique.outcome in FAILED_OUTCOMES for critique in scored.critiques),
            "votes": {str(step): count for step, count in enumerate(counts) if count},
            "wrong_steps": scored.verdict.wrong_steps if scored.verdict else (),
            "kept": advantages is not None,
        }
        rewards = _numbers(scored.token_rewards)
        advantages = (0.0,) * len(scored.token_rewards) if advantages is None else advantages
        said = json.dumps(row, allow_nan=False)
        yield f'{said[:-1]}, "token_rewards": {rewards}, "advantages": {_numbers(advantages)}}}\n'


def _numbers(values: Sequence[float]) -> str:
    """A JSON list, written fast: per response there are many tokens and few different values."""
    written = {value: repr(value) for value in set(values)}
    return f"[{', '.join(map(written.__getitem__, values))}]"


def run(
    lines: Iterable[bytes], out: TextIO, err: TextIO, *, tokens: Tokens, scheme: Scheme, between: re.Pattern[str]
) -> int:
    """Score every group of `lines`; returns the exit code."""
    code = 0
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            group_id, members = read_group(line, tokens, between)
            written = list(rows(group_id, score_group(members, scheme)))
        except (ValueError, OverflowError, RecursionError) as error:
            print(f"line {at}: {error}", file=err)
            code = 1
            continue
        out.writelines(written)
    return code


WEIGHT = number(0, 1e15)
SETTINGS = {
    "tokenizer": Setting("path", text, "tokenizer.json (or .gz), or the folder that holds it", required=True),
    "vote": Setting(f"{' | '.join(get_args(Vote))} | module:name", text, "how critiques become a verdict", CAPO.vote),
    "outcome_weight": Setting("number >= 0", WEIGHT, "what a right answer is worth", CAPO.outcome_weight),
    "process_weight": Setting("number >= 0", WEIGHT, "what a wrong step costs each of its tokens", CAPO.process_weight),
    "segmenter": Setting(
        " | ".join(get_args(SegmenterKind)),
        one_of(get_args(SegmenterKind)),
        "what stands between two steps",
        "blank_line",
    ),
    "segmenter_pattern": Setting("regular expression", text, "what stands between two steps (segmenter=regex)"),
    "advantage": Setting(
        f"{' | '.join(ALGORITHMS)} | module:name", text, "how rewards become advantages", CAPO.advantage
    ),
    "min_valid_critiques": Setting(
        "integer >= 1", whole(1, 1000), "a response with fewer is unjudged", CAPO.min_valid_critiques
    ),
    "unjudged": Setting(
        " | ".join(get_args(Unjudged)),
        one_of(get_args(Unjudged)),
        "what becomes of a response that is unjudged",
        CAPO.unjudged,
    ),
}
USAGE = f"""usage: python -m capo_ray.credit tokenizer=FOLDER [key=value ...] < GROUPS.jsonl

Steps, votes, token rewards and advantages of recorded responses.{(__doc__ or "").partition("engine.")[2].rstrip()}

  python -m capo_ray.credit tokenizer=FOLDER vote=majority < groups.jsonl > responses.jsonl
"""


def main(argv: Sequence[str] | None = None) -> int:
    asked = sys.argv[1:] if argv is None else argv
    if asks_for_help(asked) or not asked:
        print(f"{USAGE}\n{listed(SETTINGS)}" if asked else f"{USAGE}\n--help lists the settings")
        return 0 if asked else 2
    try:
        given = read(SETTINGS, asked)
        tokens = Tokens(Path(given.pop("tokenizer")))
        between = delimiter(given.pop("segmenter"), given.pop("segmenter_pattern"))
        algorithm_of(given["advantage"])
        check_vote(given["vote"])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scheme = Scheme(**given)
    return to_stdout(
        lambda: run(sys.stdin.buffer, sys.stdout, sys.stderr, tokens=tokens, scheme=scheme, between=between)
    )


if __name__ == "__main__":
    sys.exit(main())
