"""Questions with options: rendered as (A) to (J), shuffled by seed, and the letter that a response settles on.

Leaves out where options come from (suites).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from capo_ray.tasks.math import last_boxed, plain
from capo_ray.types import Verification

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "123456789"

# What may stand around a letter: dollars, asterisks, brackets, LaTeX text and font commands; "option" before it.
_AROUND = r"(?:[\s$*`\"'(\[{]|\\(?:text|textbf|mathrm|mathbf|textrm|mbox|bf|rm)\b|\\[(,])*"
_BEFORE = rf"{_AROUND}(?:(?i:option|choice|answer)\s*:?\s*)?{_AROUND}"
_CLOSED = r"(?=\s*(?:[$*`\"')\]}.:,\\]|$))"
_ENDS = r"(?![A-Za-z0-9'’-])"
_ALONE = re.compile(rf"{_BEFORE}([A-Za-z1-9]){_CLOSED}")
_SAID = re.compile(rf"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|would\s+be))?)\s*[:=]?\s*{_BEFORE}([A-Z1-9]){_ENDS}")
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
    """The option that `response` settles on, one of `labels`: in its last box, else after the last "answer is", else on
    a last line of its own. A box may also hold the text of one of `options`. None where it settles on none."""
    boxed = last_boxed(response)
    if boxed is not None:
        same = [label for label, option in zip(labels, options, strict=False) if plain(option) == plain(boxed)]
        alone = _ALONE.match(boxed)
        if alone and (found := alone[1].upper()) in labels and not (len(same) == 1 and len(plain(boxed)) > 1):
            return found
        return same[0] if len(same) == 1 else None
    said = [match[1] for match in _SAID.finditer(response) if match[1] in labels]
    if said:
        return said[-1]
    last = _LINE.match(response.strip().rsplit("\n", 1)[-1])
    return last[1] if last and last[1] in labels else None


def verify_choice(gold: str, response: str, options: Sequence[str] = ()) -> Verification:
    """`gold` is a letter; it may be a digit where the question holds its options itself, and `options` are unknown."""
    labels = LETTERS[: len(options)] or (DIGITS if gold in DIGITS else LETTERS)
    found = letter_of(response, labels, options)
    if found is None:
        return Verification(answer="wrong", extracted=last_boxed(response), reason="no option is chosen")
    if found == gold:
        return Verification(answer="correct", extracted=found)
    return Verification(answer="wrong", extracted=found, reason=f"{found} is not {gold}")
