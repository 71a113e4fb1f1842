"""Questions with options: rendered as (A) to (J), shuffled by seed, and the letter that a response settles on.

Leaves out where options come from (suites).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from capo_ray.credit.thoughts import said
from capo_ray.tasks.answers.final import final_answer, last_boxed
from capo_ray.tasks.math import plain
from capo_ray.types import Verification

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "123456789"

# What may stand around a letter: dollars, asterisks, brackets, LaTeX text and font commands; "option" before it.
_AROUND = r"(?:[\s$*`\"'(\[{]|\\(?:text|textbf|mathrm|mathbf|textrm|mbox|bf|rm)\b|\\[(,])*"
_BEFORE = rf"{_AROUND}(?:(?i:option|choice|answer)\s*:?\s*)?{_AROUND}"
_CLOSED = r"(?=\s*(?:[$*`\"')\]}.:,\\]|$))"
_ENDS = r"(?![A-Za-z0-9-]|['’][A-Za-z])"
_ALONE = re.compile(rf"{_BEFORE}([A-Za-z1-9]){_CLOSED}")
_SURE = r"(?:\s+(?:definitely|clearly|therefore|thus|probably|most\s+likely|likely"
_SURE += r"|indeed|surely|simply|then|obviously|certainly|just))*"
_IS = (
    r"(?:\s+(?:is|are|(?:would|should|must|will|can\s+only)\s+be|(?:has|seems|appears)\s+to\s+be))?"
    rf"{_SURE}"
)
_SAID = re.compile(
    rf"(?:(?i:\b(?:answer|option|choice)\b{_IS}|\b(?:it|this|that)\s+(?:is|must\s+be|should\s+be|has\s+to\s+be)\b{_SURE}|\bit's\b{_SURE}"
    rf"|\bI(?:\s+would|'d|\s+will|'ll)?\s+(?:choose|chose|pick|select|go\s+with|say|answer|opt\s+for)\b{_SURE}|####)|答案(?:是|为|：)?)"
    rf"\s*[:=：]?\s*{_BEFORE}([A-Z1-9]){_ENDS}(?!\s+not\b)"
    rf"|(?:^|[\s(*])(?:(?i:option|choice|answer)\s+)?\(?([A-Z])\)?\s+(?:is|must\s+be|should\s+be)\s+(?:the\s+|therefore\s+|thus\s+)?(?:(?:correct|right|best)\b|answer\b)",
    re.MULTILINE,
)
_TAGGED = re.compile(r"<\s*answer\s*>(.*?)(?:<\s*/\s*answer\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_WITH_TEXT = re.compile(rf"^{_AROUND}([A-Z1-9])\s*[$*`\"')\]}}]*\s*[.:)\]-][\s*_]*(\S.*)$")
_LINE = re.compile(rf"^{_AROUND}([A-Z1-9])[\s$*`\"')\]}}.]*$")


def shuffled(options: Sequence[str], gold: int, seed: int) -> tuple[list[str], int]:
    """The options in the order that `seed` makes, and where the right one stands then."""
    order = list(range(len(options)))
    random.Random(seed).shuffle(order)
    return [options[place] for place in order], order.index(gold)


def render(options: Sequence[str]) -> str:
    """One line per option, such as "(A) four"."""
    return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))


def letter_of(response: str, labels: str, options: Sequence[str] = ()) -> str | None:
    """The option that `response` settles on, one of `labels`: in its last box or <answer>, else after the last "answer
    is" and the like, else on a last line of its own. A box, an announcement and a line behind its letter may also hold
    the text of one of `options`. Thoughts say nothing. None where it settles on none."""
    text, unfinished = said(response)
    if unfinished:
        return None
    final = final_answer(text)
    if final.boxed:
        return _of_short(final.readings[0], labels, options)
    if tagged := _TAGGED.findall(text):
        return _of_short(tagged[-1], labels, options) or _announced(tagged[-1], labels)
    if found := _announced(text, labels):
        return found
    last = text.strip().rsplit("\n", 1)[-1]
    if (alone := _LINE.match(last)) and alone[1] in labels:
        return alone[1]
    if (longer := _WITH_TEXT.match(last)) and longer[1] in labels and longer[1] in _same(longer[2], labels, options):
        return longer[1]
    same = {label for reading in final.readings for label in _same(reading, labels, options)}
    return same.pop() if len(same) == 1 else None


def _of_short(text: str, labels: str, options: Sequence[str]) -> str | None:
    same = _same(text, labels, options)
    alone = _ALONE.match(text)
    if alone and (found := alone[1].upper()) in labels and not (len(same) == 1 and len(plain(text)) > 1):
        return found
    return same[0] if len(same) == 1 else None


def _same(text: str, labels: str, options: Sequence[str]) -> list[str]:
    """The labels of the options that have this text."""
    spelling = plain(text)
    return [label for label, option in zip(labels, options, strict=False) if plain(option) == spelling]


def _announced(text: str, labels: str) -> str | None:
    found = [match[1] or match[2] for match in _SAID.finditer(text)]
    return next((label for label in reversed(found) if label in labels), None)


def verify_choice(gold: str, response: str, options: Sequence[str] = ()) -> Verification:
    """`gold` is a letter; it may be a digit where the question holds its options itself, and `options` are unknown."""
    labels = LETTERS[: len(options)] or (DIGITS if gold in DIGITS else LETTERS)
    found = letter_of(response, labels, options)
    if found is None:
        return Verification(answer="wrong", extracted=last_boxed(said(response).text), reason="no option is chosen")
    if found == gold:
        return Verification(answer="correct", extracted=found)
    return Verification(answer="wrong", extracted=found, reason=f"{found} is not {gold}")
