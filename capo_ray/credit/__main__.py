"""`python -m capo_ray.credit`: the method on recorded responses, without any engine.

A line in is a group, a line out is a response:
    {"id", "responses": [{"text" and/or "token_ids", "outcome": 0|1, "critiques": [str, ...]}]}
    {"id", "index", "steps": [{"start", "end", "tokens": [first, end]}], "valid", "invalid", "votes": {"step": count},
     "wrong_steps", "kept", "token_rewards", "advantages"}
A response that its group drops (too few valid critiques) says "kept": false: its rewards are those of its outcome
alone, its advantages are 0. A bad line is reported on standard error and skipped; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from capo_ray.arguments import KeyValues, number, whole
from capo_ray.credit.advantage import ALGORITHMS, algorithm_of
from capo_ray.credit.group import GroupScore, Member, Scheme, Unjudged, score_group
from capo_ray.credit.recorded import Tokens, read_response, short
from capo_ray.credit.steps import SegmenterKind, delimiter
from capo_ray.credit.vote import Vote, check_weight, weight_of
from capo_ray.extension import is_own
from capo_ray.output import to_stdout
from capo_ray.types import FAILED_OUTCOMES

TRIED = 4
"""Critiques that a vote of the user's own is tried out with."""


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


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeyValues(
        prog="python -m capo_ray.credit", description="Steps, votes, token rewards, advantages of recorded responses."
    )
    weight = number(0, 1e15)
    add = parser.add_argument
    add("--tokenizer", type=Path, required=True, help="tokenizer.json (or .gz), or the folder that holds it")
    add("--vote", default="intersection", help=f"{', '.join(get_args(Vote))}, or module:name of your own")
    add("--outcome-weight", type=weight, default=2.0, metavar="C", help="what a right answer is worth")
    add("--process-weight", type=weight, default=1.0, metavar="P", help="what a wrong step costs each of its tokens")
    add("--segmenter", choices=get_args(SegmenterKind), default="blank_line", help="what stands between two steps")
    add("--segmenter-pattern", metavar="REGEX", help="what stands between two steps (segmenter regex)")
    add("--advantage", default="capo", help=f"{', '.join(ALGORITHMS)}, or module:name of your own")
    add("--min-valid-critiques", type=whole(1, 1000), default=1, metavar="N", help="fewer: the response is unjudged")
    add("--unjudged", choices=get_args(Unjudged), default="drop", help="what becomes of a response that is unjudged")
    return parser.parse_args(argv)  # type: ignore[no-any-return]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    try:
        tokens = Tokens(args.tokenizer)
        between = delimiter(args.segmenter, args.segmenter_pattern)
        algorithm_of(args.advantage)
        check_weight(args.vote, TRIED) if is_own(args.vote) else weight_of(args.vote)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scheme = Scheme(
        vote=args.vote,
        outcome_weight=args.outcome_weight,
        process_weight=args.process_weight,
        advantage=args.advantage,
        min_valid_critiques=args.min_valid_critiques,
        unjudged=args.unjudged,
    )
    return to_stdout(
        lambda: run(sys.stdin.buffer, sys.stdout, sys.stderr, tokens=tokens, scheme=scheme, between=between)
    )


if __name__ == "__main__":
    sys.exit(main())
