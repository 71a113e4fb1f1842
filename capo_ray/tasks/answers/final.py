r"""Where the final answer of a response stands.

Thoughts are none of it, and what is cut off inside them has no answer. Of the rest the last \boxed{} or <answer>
counts; without one the last announcement ("The answer is", "Answer:", "#### ", {"answer": ...}), up to where its
sentence goes on; without that the whole of a short text, else the last formula or number. Linear in the response.
Leaves out what an answer means.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from capo_ray.credit.thoughts import said

TAIL = 4000
"""Characters at the end of a response in which an answer without a box is looked for."""
_NEIGHBOURS = 80
"""Characters between boxes that are read together."""
_MOST_BOXES = 50

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_DENIED = re.compile(r"\banswers?\s+(?:is|are)(?:\s+not\b|n't\b)", re.IGNORECASE)
_TAG = re.compile(r"<\s*(?:final_)?answer\s*>(.*?)<\s*/\s*(?:final_)?answer\s*>", re.IGNORECASE | re.DOTALL)
_OPEN_TAG = re.compile(r"<\s*(?:final_)?answer\s*>", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[^<>|\s]{1,40}\|>.*\Z|<\|[^<>|\s]{1,40}\|>|</s>\s*\Z", re.DOTALL)
_JSON = re.compile(
    r"[\"'](?:final[_ ])?answer[\"']\s*:\s*(?:\"((?:[^\"\\\n]|\\.)*)\"|'([^'\n]*)'|([^,}\n]+))", re.IGNORECASE
)
_BARE_BOX = re.compile(r"\\boxed\s*([^\s$.,{}\\]+)")
_HASHES = re.compile(r"####:?[ \t]*([^\n]+)")
_SAID = re.compile(
    r"(?:\b(?:final\s+|correct\s+)?(?:answers?|ans\.?)(?![a-z])[*_]{0,2}(?:\s+(?:to|for|of|in)\b[^.\n:=]{0,60}?)?"
    r"(?:\s*[*_]{0,2}\s*(?:[:=：]|\b(?:is|are|was|(?:would|should|must|will|has to|can only)\s+be|equals|comes to"
    r"|therefore)\b)(?!\s+not\b))+"
    r"|最终答案|(?:答案|解)\s*(?:是|为|：|:)|\b(?:r[ée]ponse|respuesta|Antwort|resposta|risposta)\s*(?:est|es|ist|:|è|é)+)"
    r"[\s*_:：=]*",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"[.!?](?=\s|[*_]*\s*$|\Z)|\n\s*\n|\n(?=[A-Z*#])"
    r"|[,;]?\s+(?:since|because|as\s+(?=\w)|so(?!\w)|where|which|for(?=\s)|when|given|by(?=\s)|thus|hence"
    r"|therefore|after|if|from|but|not)\b"
    r"|\s[-–—]+\s+(?=[A-Za-z])|[,;]\s*(?=(?:and|so|which)\s+[a-z]{3,})|\s\((?=(?:since|because|as|i\.e)\b)",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_VALUE = re.compile(
    r"(?:\\\$|[$€£])?\s?-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:[.,]?\d+)?(?:\.?\d+(?:[eE][+-]?\d+)?)?"
    r"(?:\s*/\s*\d+(?![.\d]))?(?:\s?(?:\\?%|percent\b|pct\b))?"
)
_NUMBER = re.compile(
    r"(?<![\w.,\\])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:[.,]\d+)?(?:\s*/\s*\d+)?(?:\s?(?:\\?%|percent\b|pct\b))?(?![\w])"
)
_SHORT = 80


@dataclass(frozen=True, slots=True)
class Final:
    """What a response answers. `readings` are looked at in turn until one can be read: a phrase, then less of it."""

    readings: tuple[str, ...]
    boxes: tuple[str, ...] = ()
    """All boxes that stand beside the last one, it included, for answers of several parts."""
    boxed: bool = False
    reason: str = ""
    """Why there is none."""

    @property
    def shown(self) -> str | None:
        return self.readings[0] if self.readings else None


def last_boxed(text: str) -> str | None:
    """What the last complete \\boxed{...} of `text` holds; None without one."""
    found, _ = _boxes(text)
    return found[-1].content if found else None


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def _boxes(text: str) -> tuple[list[_Box], int]:
    """The complete boxes that stand in no other one, ascending, and where one begins that is never closed, else -1."""
    found: list[_Box] = []
    opened: list[tuple[int, int] | None] = []  # (start, start of the content) of a box, None for another brace
    for mark in _BRACES.finditer(text, max(0, text.find("\\"))):
        if mark[0] == "{":
            opened.append(None)
        elif mark[0] == "}":
            box = opened.pop() if opened else None
            if box is not None:
                while found and found[-1].start > box[0]:
                    found.pop()
                found.append(_Box(box[0], mark.end(), text[box[1] : mark.start()]))
        elif mark["box"]:
            opened.append((mark.start(), mark.end()))
    return found, max((box[0] for box in opened if box is not None), default=-1)


def final_answer(response: str) -> Final:
    text, unfinished = said(response)
    if unfinished:
        return Final((), reason="the response ends inside its thoughts")
    boxes, unclosed = _boxes(text)
    tag = _last_tag(text)
    if tag is not None and (not boxes or boxes[-1].start < tag[0]):
        inner = final_answer(tag[1])
        return inner if inner.boxed else Final((tag[1].strip(), *_phrases(tag[1])))
    if boxes:
        return Final((boxes[-1].content,), _beside(text, boxes[-_MOST_BOXES:]), boxed=True)
    if unclosed >= 0:
        return Final((), reason="the last \\boxed{} is not closed")
    return _unboxed(_SPECIAL.sub(" ", text)[-TAIL:])


def _beside(text: str, boxes: list[_Box]) -> tuple[str, ...]:
    """What the last box and those that are listed with it hold."""
    beside = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box.end : beside[-1].start]
        if len(between) > _NEIGHBOURS or "\n\n" in between or not _joins(between):
            break
        beside.append(box)
    return tuple(box.content for box in reversed(beside))


def _joins(between: str) -> bool:
    """Whether what stands between two boxes lists them: no sentence, and not a word of doubt."""
    return not re.search(
        r"\b(?:no|not|wait|so|then|actually|instead|correct|but|hmm|rather|wrong|mistake)\b|\.\s+[A-Z]",
        between,
        re.IGNORECASE,
    )


def _last_tag(text: str) -> tuple[int, str] | None:
    if found := next(iter(deque(_TAG.finditer(text), maxlen=1)), None):
        return found.start(), found[1]
    opened = next(iter(deque(_OPEN_TAG.finditer(text), maxlen=1)), None)
    return (opened.start(), text[opened.end() :]) if opened is not None and len(text) - opened.end() <= 200 else None


def _unboxed(text: str) -> Final:
    marks: list[tuple[int, tuple[str, ...]]] = []
    for found in _JSON.finditer(text):
        marks.append((found.start(), ((found[1] or found[2] or found[3] or "").replace("\\\\", "\\").strip(),)))
    for found in _BARE_BOX.finditer(text):
        marks.append((found.start(), (found[1],)))
    for found in _HASHES.finditer(text):
        marks.append((found.start(), _phrases(found[1])))
    for found in _SAID.finditer(text):
        if (phrases := _phrases(text[found.end() :])) and any(phrases):
            marks.append((found.start(), phrases))
    if marks:
        return Final(max(marks)[1])
    if _DENIED.search(text):
        return Final((), reason="no answer in the response, but one that it is not")
    stripped = text.strip()
    whole = (
        len(stripped) <= _SHORT
        and "\n" not in stripped
        and bool(re.search(r"[\d$\\]", stripped) or " " not in stripped)
    )
    readings = ((stripped,) if stripped and whole else ()) + _last_value(stripped)
    return Final(readings, reason="" if readings else "no answer in the response")


def _phrases(text: str) -> tuple[str, ...]:
    """What follows an announcement: up to where the sentence goes on, then its first formula, then its first value."""
    text = text.lstrip(" \t*_:")[:600]
    readings: list[str] = []
    if formula := _FORMULA.match(text.lstrip()):
        tail = re.match(r"\s*(?:\\?%|percent\b|degrees?\b|\\text\{[^{}]*\})", text.lstrip()[formula.end() :])
        whole = _inner(formula)
        if rest := _phrase(text):
            readings.append(rest)
        readings.append(whole + (tail[0] if tail else ""))
    elif phrase := _phrase(text):
        readings.append(phrase)
        if inside := _FORMULA.search(phrase):
            readings.append(_inner(inside))
        if bold := _BOLD.match(text):
            readings.append(bold[1])
        if (first := _VALUE.match(phrase)) and re.search(r"\d", first[0]):
            readings.append(first[0].strip(" ,"))
    return tuple(dict.fromkeys(reading.strip() for reading in readings if reading.strip()))


def _phrase(text: str) -> str:
    """Formulas are kept whole: a dot inside of one ends no sentence."""
    text = text.lstrip()
    masked = _FORMULA.sub(lambda found: "x" * len(found[0]), text)
    masked = re.sub(
        r"\b[ap]\.m\.|\b(?:sq|cu|in|ft|lb|oz|approx|hr|min|sec)\.(?=\s+\w)", lambda found: "x" * len(found[0]), masked
    )
    end = _GOES_ON.search(masked, 1) if masked else None
    return text[: end.start() if end else len(text)].strip().removesuffix("**").strip()


def _inner(formula: re.Match[str]) -> str:
    return next(part for part in formula.groups() if part is not None)


def _last_value(text: str) -> tuple[str, ...]:
    """The last formula or bold words, else the last number."""
    last: tuple[int, str] | None = None
    for pattern in (_FORMULA, _BOLD):
        for found in pattern.finditer(text):
            if last is None or found.end() > last[0]:
                last = (found.end(), _inner(found) if pattern is _FORMULA else found[1])
    numbers = list(_NUMBER.finditer(text))
    if numbers and (last is None or numbers[-1].start() >= last[0] or not re.search(r"[A-Za-z0-9]", last[1])):
        return (numbers[-1][0],)
    if last is None:
        return ()
    return (last[1], last[1].rpartition("=")[2]) if "=" in last[1] else (last[1],)
