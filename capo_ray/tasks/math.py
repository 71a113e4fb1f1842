"""Final answers of mathematics: found in a response, made comparable, compared with the gold answer.

math-verify does the algebra. Before it three things happen here: the last \\boxed{} is what counts, percent signs are
taken off both sides (math-verify misreads them under the antlr that Hydra needs), and answers written alike are equal
without any parsing. `judge` can hang or exhaust memory on a degenerate answer, so it is called in a child process that
can be killed (verify_worker); leaves that out.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from capo_ray.types import Verification

TAIL = 4000
"""Characters at the end of a response in which an answer without a box is looked for."""
_LONGEST_ANSWER = 2000

_PERCENT = re.compile(
    r"(?:\\[,;!: ]|[~\s{}])*(?:\\?%|\\(?:text|mbox|textrm|mathrm)\{\s*(?:\\?%|percent)\s*\}|\bpercent\b)"
)
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?|-?\.\d+")
_TWICE = re.compile(rf"\s*({_NUMBER.pattern})\s*=\s*({_NUMBER.pattern})\s*")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|!|,|;|:| |quad)(?![a-zA-Z])|[\s$]")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """What the last complete \\boxed{...} of `text` holds; None without one."""
    end = len(text)
    while (start := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))) >= 0:
        found = _braced(text, text.find("{", start))
        if found is not None and text[start:].lstrip("\\fboxed").lstrip().startswith("{"):
            return found
        end = start
    return None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and its partner."""
    if start < 0:
        return None
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "{}" and (position == 0 or text[position - 1] != "\\"):
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start + 1 : position]
    return None


def integer_answer(text: str) -> int | None:
    """The integer in the last box of `text`; None where there is no box or something else in it."""
    boxed = last_boxed(text)
    if boxed is None or not re.fullmatch(r"\s*[-+]?\d{1,18}\s*", boxed):
        return None
    return int(boxed)


def verify_integer(gold: str, response: str) -> Verification:
    """Exact and cheap: for tasks whose answers are integers. Needs no child process."""
    boxed, found = last_boxed(response), integer_answer(response)
    if found is None:
        reason = "no \\boxed{} in the response" if boxed is None else "the last \\boxed{} holds no integer"
        return Verification(answer="wrong", extracted=boxed, reason=reason)
    if found == int(gold):
        return Verification(answer="correct", extracted=str(found))
    return Verification(answer="wrong", extracted=str(found), reason=f"{found} is not {gold}")


def without_percent(text: str) -> tuple[str, bool]:
    """`text` with percent signs and words taken off, and whether there were any."""
    stripped, number = _PERCENT.subn(" ", text)
    if number and (both := _TWICE.fullmatch(stripped)) and Fraction(both[1]) * 100 == Fraction(both[2]):
        stripped = both[2]  # "0.56 = 56%" says it twice
    return stripped, number > 0


def plain(text: str) -> str:
    """A spelling in which answers that only look different are equal: no spacing, sizes, text boxes or final dot."""
    text = _TEXT.sub(r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return _SPACING.sub("", text).rstrip(".").replace("{,}", ",")


def judge(gold: str, response: str) -> Verification:
    """Compare the final answer of `response` with `gold`. May hang: run it in a process that can be killed."""
    boxed = last_boxed(response)
    gold_answer = last_boxed(gold) or gold
    gold_text, gold_percent = without_percent(gold_answer)
    if not plain(gold_text):
        return Verification(answer="unverifiable", reason="the gold answer is empty")
    if boxed is not None and len(boxed) > _LONGEST_ANSWER:
        return Verification(answer="wrong", extracted=boxed[:100], reason="the last \\boxed{} holds no short answer")
    text, percent = without_percent(response[-TAIL:] if boxed is None else boxed)
    if boxed is not None and plain(text) == plain(gold_text):
        return Verification(answer="correct", extracted=boxed)
    found = _judge_parsed(gold_text, text, boxed=boxed, one_percent=percent != gold_percent)
    several = "," in gold_text and response.count("\\boxed") > 1
    if (
        found.answer == "wrong" and several
    ):  # one box for each part of the answer: math-verify reads neighbours together
        together = _judge_parsed(gold_text, without_percent(response[-TAIL:])[0], boxed=None, one_percent=False)
        return together if together.answer == "correct" else found
    return found


def _judge_parsed(gold: str, text: str, *, boxed: str | None, one_percent: bool) -> Verification:
    wanted = _parse(f"\\boxed{{{gold}}}")
    if not wanted:
        return Verification(answer="unverifiable", extracted=boxed, reason="the gold answer cannot be parsed")
    found = _parse(text if boxed is None else f"\\boxed{{{text}}}")
    if not found:
        reason = "no answer in the response" if boxed is None else "the answer cannot be parsed"
        return Verification(answer="wrong", extracted=boxed, reason=reason)
    extracted = boxed if boxed is not None else str(found[-1])
    if _equal(wanted, found) or (one_percent and _equal_up_to_percent(gold, str(found[-1]))):
        return Verification(answer="correct", extracted=extracted)
    return Verification(answer="wrong", extracted=extracted, reason="not equal to the gold answer")


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))


def _equal(gold: list[Any], found: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, found, timeout_seconds=None))


def _equal_up_to_percent(gold: str, found: str) -> bool:
    """Whether one is the other in percent: 28 and 0.28, where only one of them was written with a percent sign."""
    numbers = [gold.replace(",", "").strip(" $"), found.replace(",", "").strip(" $")]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        return False
    wanted, there = (Fraction(number) for number in numbers)
    return wanted == 100 * there or there == 100 * wanted
