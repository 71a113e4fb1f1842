"""The method in a notebook: `score` takes recorded responses of one prompt and shows their credit, in colour.

    from capo_ray.notebook import score
    score([{"text": "1 + 1 = 3.", "outcome": 0, "critiques": ["<incorrect_steps>0</incorrect_steps>"]}, ...], FOLDER)

Needs no engine. Leaves out: the same for files (see `credit.__main__`) and for runs (see `view`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from capo_ray.credit.group import CAPO, GroupScore, Scheme, score_group
from capo_ray.credit.recorded import Tokens, read_response
from capo_ray.credit.steps import BLANK_LINE
from capo_ray.types import Scored
from capo_ray.view.colours import stylesheet_within
from capo_ray.view.markup import Credit, facts, limit_of, steps_grid
from capo_ray.view.records import Entry, Response

_CLASS = "capo-credit"
_LINK = re.compile(r' href="#critique-\d+"')
"""From a flag to its critique's text, which is not shown here."""


def score(
    responses: Sequence[Mapping[str, Any]],
    tokenizer: str | Path,
    *,
    scheme: Scheme | None = None,
    between: re.Pattern[str] = BLANK_LINE,
) -> Shown:
    """The credit of every token of all responses to one prompt.

    A response has `text` and/or `token_ids`, `outcome` (1: the answer is right) and `critiques` (what critics wrote);
    `tokenizer` is a `tokenizer.json` or its folder. `between` is what stands between two steps. Raises ValueError where
    a response cannot be used, and says which.
    """
    if not responses:
        raise ValueError("there must be at least one response")
    tokens = Tokens(Path(tokenizer))
    members = []
    for index, response in enumerate(responses):
        try:
            members.append(read_response(dict(response), index, tokens, between))
        except ValueError as error:
            raise ValueError(f"response {index}: {error}") from None
    return Shown(score_group(members, scheme or CAPO))


@dataclass(frozen=True, slots=True, repr=False)
class Shown:
    """A scored group that a notebook shows in colour, and a terminal as a line per step."""

    score: GroupScore
    """Steps, votes, token rewards and advantages, as numbers."""
    credit: Credit = "advantage"
    """What the colours stand for; `reward`: before anything is normalised."""

    def _repr_html_(self) -> str:
        responses = list(self._responses())
        limit = limit_of(responses, self.credit)
        shown = "".join(
            f'<div style="margin-bottom: 1rem"><div class="facts"><b>response {response.entry.index}</b>'
            f"{facts(response.entry)}</div>{_LINK.sub('', steps_grid(response, self.credit, limit))}</div>"
            for response in responses
        )
        return f'<style>{stylesheet_within(_CLASS)}</style><div class="{_CLASS}"><div class="resp">{shown}</div></div>'

    def __str__(self) -> str:
        return "\n".join(line for response in self._responses() for line in _lines(response, self.credit))

    __repr__ = __str__

    def _responses(self) -> Iterator[Response]:
        for scored, advantages in zip(self.score.members, self.score.advantages, strict=True):
            yield _response(scored, advantages)


def _response(scored: Scored, advantages: tuple[float, ...] | None) -> Response:
    """As the viewer of runs has it; nothing is known of a problem or a run."""
    rollout, verdict = scored.rollout, scored.verdict
    counts, valid = (verdict.counts, verdict.num_valid) if verdict else ((), 0)
    entry = Entry(
        file="", position=rollout.index, step=0, prompt_id="", index=rollout.index, answer=scored.answer,
        finish=rollout.finish, version=-1, num_tokens=len(rollout.token_ids), num_steps=len(scored.steps),
        judged=verdict is not None, flagged=verdict.wrong_steps if verdict else (), counts=counts, num_valid=valid,
        num_failed=verdict.num_invalid if verdict else 0,
        disagree=any(0 < count < valid for count in counts), steps_right=None,
    )  # fmt: skip
    return Response(
        entry=entry,
        question="",
        gold="",
        solution="",
        text=rollout.text,
        char_ends=rollout.char_ends,
        chars=tuple(step.chars for step in scored.steps),
        tokens=tuple(step.tokens for step in scored.steps),
        critiques=scored.critiques,
        rewards=scored.token_rewards,
        advantages=advantages,
        weights=verdict.weights if verdict else None,
    )


def _lines(response: Response, credit: Credit) -> Iterator[str]:
    """A line per step: its mean credit, how many critiques flag it, what the vote says, its text."""
    entry = response.entry
    values = response.rewards if credit == "reward" else response.advantages
    dropped = ", dropped from its group" if response.advantages is None else ""
    answer = {"correct": "right", "unverifiable": "unverifiable"}.get(entry.answer, "wrong")
    yield f"response {entry.index}: {answer} answer{dropped}; {credit} per token, flags, step"
    for step, ((start, end), (first, last)) in enumerate(zip(response.chars, response.tokens, strict=True)):
        paid = f"{fmean(values[first:last]):+.3f}" if values and last > first else ""
        flags = f"{entry.counts[step]}/{entry.num_valid}" if entry.counts else ""
        wrong = "✗" if step in entry.flagged else " "
        yield f"  {paid:>7}  {flags:>5} {wrong}  {step}: {' '.join(response.text[start:end].split())}"
