"""Pieces of the pages as HTML: a response in a list, in full, side by side with another, and the tables.

Pure functions from records to text. Leaves out: colours and escaping of tokens (see `colours`), widgets (see `page`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Literal
from urllib.parse import urlencode

from capo_ray.types import UNASKED_OUTCOMES, Critique
from capo_ray.view.choose import Draw, Written, verdict_of
from capo_ray.view.colours import legend, token_spans
from capo_ray.view.records import Entry, Response

Credit = Literal["advantage", "reward"]
EXCERPT = 420
"""Characters of a response in a list."""
QUESTION = 160
"""Characters of a question that a list shows."""


_LAST_BREAKS = re.compile(r"\n(?=(?:<[^>]*>|↵|∎|\n)*$)")
"""Line breaks at the end of a step: their signs stay."""


def address(entry: Entry) -> str:
    query = urlencode({"step": entry.step, "prompt": entry.prompt_id, "index": entry.index})
    return escape(f"/response?{query}")


def values_of(response: Response, credit: Credit) -> tuple[float, ...] | None:
    return response.rewards if credit == "reward" else response.advantages


def limit_of(responses: Sequence[Response], credit: Credit) -> float:
    """The largest magnitude among them."""
    return max((abs(value) for response in responses for value in values_of(response, credit) or ()), default=0.0)


def _badge(text: str, kind: str = "faint") -> str:
    return f'<span class="badge {kind}">{escape(text)}</span>'


def _kind_of(answer: str) -> str:
    return {"correct": "ok", "wrong": "bad"}.get(answer, "faint")


def facts(entry: Entry) -> str:
    """What is known of a response without its text."""
    made = [
        _badge({"correct": "right", "unverifiable": "unverifiable"}.get(entry.answer, "wrong"), _kind_of(entry.answer))
    ]
    verdict = verdict_of(entry)
    if verdict == "flagged":
        made.append(_badge(f"flagged: {_steps(entry.flagged)}", "bad"))
    elif verdict == "clean":
        made.append(_badge("no reasoning step flagged", "ok"))
    else:
        made.append(_badge("unjudged"))
    if entry.disagree:
        made.append(_badge("critiques differ"))
    if entry.num_failed:
        made.append(_badge(f"{entry.num_failed} unreadable"))
    if entry.finish == "length":
        made.append(_badge("cut off"))
    if entry.steps_right is not None:
        right = sum(entry.steps_right)
        kind = "ok" if right == len(entry.steps_right) else "bad"
        made.append(f'<span class="{kind}">truth: {right} of {len(entry.steps_right)} reasoning steps right</span>')
    made.append(f'<span class="faint">{entry.num_tokens} tokens, {entry.num_steps} reasoning steps</span>')
    if entry.version >= 0:
        title = "how many training steps made the policy that sampled it"
        made.append(f'<span class="faint" title="{title}">policy version {entry.version}</span>')
    return "".join(made)


def list_row(response: Response, credit: Credit, limit: float) -> str:
    """A response in a list: its question, and the beginning of its text, or of its first flagged step where that is far
    in."""
    entry, ends = response.entry, response.char_ends
    begin = response.chars[entry.flagged[0]][0] if entry.flagged else 0
    begin = begin if begin > EXCERPT // 2 else 0
    first = bisect_right(ends, begin) if begin else 0
    last = max(bisect_right(ends, begin + EXCERPT), first + 1)
    values = values_of(response, credit)
    cuts = [0, *(tokens[0] for tokens in response.tokens if first < tokens[0] < last)]
    pieces = [
        token_spans(
            response.text, ends[a:b], values[a:b] if values else None,
            limit=limit, first=a, start=ends[a - 1] if a else 0, label=credit, breaks=False,
        )
        for a, b in pairwise([max(cuts[0], first), *cuts[1:], last])
    ]  # fmt: skip
    name = f"<b>training step {entry.step}</b><span>{escape(entry.prompt_id)} / {entry.index}</span>"
    question = " ".join(response.question[: 2 * QUESTION].split())
    question = question if len(question) <= QUESTION else f"{question[:QUESTION]} …"
    before, after = "… " if begin else "", " …" if last < len(ends) else ""
    return (
        f'<a class="resp" href="{address(entry)}"><div class="facts">{name}{facts(entry)}</div>'
        f'<div class="asked">{escape(question)}</div>'
        f'<div class="tok">{before}{"<span class=cut></span>".join(pieces)}{after}</div></a>'
    )


def problem_box(response: Response) -> str:
    solution = (
        f"<details><summary>Reference solution</summary>{_plain(response.solution)}</details>"
        if response.solution
        else '<div class="faint">no reference solution</div>'
    )
    return (
        f'<div class="box"><h3>Question</h3>{_plain(response.question)}</div>'
        f'<div class="box"><h3>Reference answer</h3>{_plain(response.gold)}{solution}</div>'
    )


def verdict_box(response: Response) -> str:
    """What the verifier and the vote say."""
    entry = response.entry
    said = {"correct": "is right", "wrong": "is wrong"}.get(entry.answer, "cannot be verified")
    why = f": {escape(response.reason)}" if response.reason else "."
    read = ""
    if response.extracted is not None:
        read = f'<div class="faint">read from the response: <code>{escape(response.extracted)}</code></div>'
    how = f"{response.vote} of " if response.vote else ""
    invalid = f", {entry.num_failed} failed" if entry.num_failed else ""
    dropped = "" if response.advantages is not None else " Dropped from its group: nothing is learnt from it."
    return (
        f'<div class="box"><h3>Verifier</h3><span class="{_kind_of(entry.answer)}">The answer {said}</span>'
        f"{why}{read}</div>"
        f'<div class="box"><h3>Vote</h3>{escape(how)}{entry.num_valid} valid critiques{invalid}: '
        f"{_outcome_of_vote(entry)}{dropped}</div>"
    )


def _outcome_of_vote(entry: Entry) -> str:
    if not entry.judged:
        return "unjudged."
    if not entry.flagged:
        return '<span class="ok">no reasoning step is wrong.</span>'
    return f'<span class="bad">{_steps(entry.flagged)} wrong.</span>'


def _plain(text: str) -> str:
    return f'<div class="plain">{escape(text)}</div>'


def steps_grid(response: Response, credit: Credit, limit: float, *, with_flags: bool = True) -> str:
    """The whole text, a row per step: its tokens, and beside them what each critique, the vote and the truth say."""
    values = values_of(response, credit)
    rows = [_head(response)] if with_flags else []
    first = 0
    for step, ((start, _), (begin, end)) in enumerate(zip(response.chars, response.tokens, strict=True)):
        end = len(response.char_ends) if step == len(response.tokens) - 1 else end  # the end token is in no step
        spans = token_spans(
            response.text, response.char_ends[begin:end], values[begin:end] if values else None,
            limit=limit, first=begin, start=start, label=credit,
        )  # fmt: skip
        spans = _LAST_BREAKS.sub("", spans)
        first = end
        flags = _flags(response, step) if with_flags else ""
        flagged = " flagged" if step in response.entry.flagged else ""
        rows.append(
            f'<div class="step{flagged}"><div class="no">{step}</div><div class="tok">{spans}</div>{flags}</div>'
        )
    if first == 0:  # no step at all
        spans = token_spans(response.text, response.char_ends, values, limit=limit, label=credit)
        rows.append(f'<div class="step"><div class="no"></div><div class="tok">{spans}</div></div>')
    scale = legend(limit, f"{credit} per token") if values else '<div class="legend">dropped: no advantage</div>'
    return f'{scale}<div class="steps">{"".join(rows)}</div>'


def _head(response: Response) -> str:
    cells = "".join(
        f'<a href="#critique-{number}" title="{escape(_says(critique))}">{number}</a>'
        for number, critique in enumerate(response.critiques)
    )
    truth = '<span class="wide">truth</span>' if response.entry.steps_right is not None else ""
    vote = '<span class="wide">vote</span>' if response.critiques else ""
    label = "Tokens by reasoning step; critique " if response.critiques else "Tokens by reasoning step"
    side = f'<div class="flags"{_width(response)}>{cells}{vote}{truth}</div>' if cells or truth else ""
    return f'<div class="step head"><div>no.</div><div>{label}{"→" if response.critiques else ""}</div>{side}</div>'


def _width(response: Response) -> str:
    return ' data-many="yes"' if len(response.critiques) > 6 else ""


def _flags(response: Response, step: int) -> str:
    entry = response.entry
    cells = [_cell(number, critique, step) for number, critique in enumerate(response.critiques)]
    if response.critiques:
        count = entry.counts[step] if step < len(entry.counts) else 0
        wrong = step in entry.flagged
        share = f" ×{response.weights[step]:.2g}" if response.weights and 0 < response.weights[step] < 1 else ""
        verdict = f'<span class="wide{" on" if wrong else ""}" title="{count} of {entry.num_valid} flag it">'
        cells.append(f"{verdict}{count}/{entry.num_valid}{' wrong' if wrong else ''}{share}</span>")
    if entry.steps_right is not None:
        right = entry.steps_right[step] if step < len(entry.steps_right) else None
        text = {True: "right", False: "wrong", None: "?"}[right]
        cells.append(f'<span class="wide{" on" if right is False else ""}">{text}</span>')
    return f'<div class="flags"{_width(response)}>{"".join(cells)}</div>' if cells else ""


def _cell(number: int, critique: Critique, step: int) -> str:
    flags = critique.outcome == "ok" and step in critique.wrong_steps
    sign = "✗" if flags else "·" if critique.outcome == "ok" else "–" if critique.outcome in UNASKED_OUTCOMES else "?"
    said = "flags it" if flags else "does not flag it" if critique.outcome == "ok" else critique.outcome
    kind = ' class="on"' if flags else ""
    return f'<a{kind} href="#critique-{number}" title="critique {number} {escape(said)}">{sign}</a>'


def _says(critique: Critique) -> str:
    if critique.outcome != "ok":
        return critique.outcome.replace("_", " ")
    return f"flags {_steps(critique.wrong_steps)}" if critique.wrong_steps else "flags nothing"


def _steps(numbers: Sequence[int]) -> str:
    return f"reasoning step{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def critiques(response: Response) -> str:
    """Every critique's text, folded. A link to it from the steps unfolds it."""
    made = []
    for number, critique in enumerate(response.critiques):
        kind = "faint" if critique.outcome != "ok" else "bad" if critique.wrong_steps else "ok"
        length = f"{critique.num_tokens} tokens" if critique.num_tokens else ""
        more = [critique.critic, length, "from the cache" if critique.cached else ""]
        made.append(
            f'<details class="critique"><summary><b>Critique {number}</b> '
            f'<span class="{kind}">{escape(_says(critique))}</span> '
            f'<span class="faint">{escape(", ".join(filter(None, more)))}</span></summary>'
            f'<pre class="at" id="critique-{number}">{escape(critique.text) or "(no text)"}</pre></details>'
        )
    return "".join(made)


def flagged_table(found: Sequence[Written]) -> str:
    """The steps most often flagged, with links to the responses that hold them."""
    rows = []
    for written in found:
        query = escape("/responses?" + urlencode({"verdict": "flagged", "text": written.text}))
        wrong = f"{written.known - written.right} of {written.known}" if written.known else ""
        rows.append(
            f'<tr><td class="n">{written.flagged}</td><td class="n">{written.critiques}</td>'
            f'<td class="n">{written.times}</td><td class="n">{written.flagged / written.times:.0%}</td>'
            f'<td class="n">{wrong}</td><td><a href="{query}">{escape(_shorter(written.text))}</a></td></tr>'
        )
    head = (
        '<tr><th class="n">flagged by the vote</th><th class="n">by critiques</th><th class="n">written</th>'
        '<th class="n">share</th><th class="n">wrong in truth</th><th>reasoning step</th></tr>'
    )
    return f'<div class="scroll"><table class="plainly">{head}{"".join(rows)}</table></div>'


def _shorter(text: str, most: int = 240) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 2] + " …"


def draws_table(drawn: Sequence[Draw]) -> str:
    """How a problem went each time that it was sampled."""
    rows = []
    for draw in drawn:
        entries = draw.entries
        mean = sum(entry.num_tokens for entry in entries) / len(entries)
        rows.append(
            f'<tr><td class="n">{draw.version}</td><td class="n">{draw.step}</td><td class="n">{len(entries)}</td>'
            f'<td class="n">{draw.share(entry.answer == "correct" for entry in entries):.0%}</td>'
            f'<td class="n">{draw.share(bool(entry.flagged) for entry in entries):.0%}</td>'
            f'<td class="n">{draw.share(entry.disagree for entry in entries):.0%}</td><td class="n">{mean:.0f}</td>'
            f'<td class="links">{" ".join(_link(entry) for entry in entries)}</td></tr>'
        )
    head = "".join(
        f'<th class="n">{name}</th>'
        for name in (
            "policy version",
            "training step",
            "responses",
            "right",
            "flagged",
            "critiques differ",
            "mean tokens",
        )
    )
    return f'<div class="scroll"><table class="plainly"><tr>{head}<th>open</th></tr>{"".join(rows)}</table></div>'


def _link(entry: Entry) -> str:
    return f'<a class="{_kind_of(entry.answer)}" href="{address(entry)}">{entry.index}</a>'
