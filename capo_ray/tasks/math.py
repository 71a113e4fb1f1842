"""Final answers of mathematics: found in a response (answers.final) and compared with the gold one (answers.equality).

What is cheap and certain, a whole number in a box, is decided here without reading anything else. `judge` is bounded in
time, but what math-verify reads for it is not, so it is called in a child process that can be killed (verify_worker);
leaves that out.
"""

from __future__ import annotations

import re
from fractions import Fraction

from capo_ray.credit.thoughts import said
from capo_ray.tasks.answers import equality, library
from capo_ray.tasks.answers.final import Final, final_answer, last_boxed
from capo_ray.tasks.answers.kinds import Answer, Items, Named, Spelling, Words
from capo_ray.tasks.answers.reading import read
from capo_ray.tasks.answers.spelling import clean
from capo_ray.types import Verification

_LONGEST_ANSWER = 2000
_NUMBER = re.compile(r"[ $]*[-+]?\d{1,60}(?:\.\d{1,12})?[ $]*")
_WHOLE = re.compile(r"\s*[-+]?\d{1,18}\s*")


def integer_answer(text: str) -> int | None:
    """The integer in the last box of `text`, outside of thoughts; None without a box or with something else in it."""
    boxed = last_boxed(said(text).text)
    return int(boxed) if boxed is not None and _WHOLE.fullmatch(boxed) else None


def verify_integer(gold: str, response: str) -> Verification:
    """Exact and cheap: for tasks whose answers are integers. Needs no child process."""
    boxed, found = last_boxed(said(response).text), integer_answer(response)
    if found is None:
        reason = "no \\boxed{} in the response" if boxed is None else "the last \\boxed{} holds no integer"
        return Verification(answer="wrong", extracted=boxed, reason=reason)
    if found == int(gold):
        return Verification(answer="correct", extracted=str(found))
    return Verification(answer="wrong", extracted=str(found), reason=f"{found} is not {gold}")


def judge(gold: str, response: str) -> Verification:
    """Compare the final answer of `response` with `gold`."""
    wanted = gold_answer(gold)
    if not clean(wanted):
        return Verification(answer="unverifiable", reason="the gold answer is empty")
    final = final_answer(response)
    if not final.readings:
        return Verification(answer="wrong", reason=final.reason or "no answer in the response")
    if len(final.readings[0]) > _LONGEST_ANSWER:
        return Verification(
            answer="wrong", extracted=final.readings[0][:100], reason="the last \\boxed{} holds no short answer"
        )
    answer = _chosen(wanted, final)
    right = equality.equal(wanted, answer) or _together(wanted, final)
    if right or (library.serves(wanted, answer) and library.equal(wanted, answer)):
        return Verification(answer="correct", extracted=answer)
    return Verification(answer="wrong", extracted=answer, reason="not equal to the gold answer")


def decided(gold: str, response: str) -> Verification | None:
    """The verdict where both are plain numbers, which needs no child process; None where more has to be read."""
    if not _NUMBER.fullmatch(gold):
        return None
    final = final_answer(response)
    if not final.boxed or not _NUMBER.fullmatch(final.readings[0]):
        return None
    if Fraction(gold.strip(" $")) == Fraction(final.readings[0].strip(" $")):
        return Verification(answer="correct", extracted=final.readings[0])
    return Verification(answer="wrong", extracted=final.readings[0], reason="not equal to the gold answer")


def gold_answer(gold: str) -> str:
    """What a gold text holds: its last box, or its boxes side by side, else all of it."""
    if "\\boxed" not in gold and "\\fbox" not in gold:
        return gold
    boxes = final_answer(gold).boxes
    return ", ".join(boxes) if boxes else gold


def _chosen(gold: str, final: Final) -> str:
    """The first reading that can be read; words count where the gold answer is words."""
    if final.boxed or len(final.readings) == 1 or isinstance(read(gold), Words | Spelling):
        return final.readings[0]
    return next((text for text in final.readings if _is_read(read(text))), final.readings[0])


def _is_read(answer: Answer) -> bool:
    """Whether no part of it is words or a mere spelling."""
    if isinstance(answer, Items):
        return all(map(_is_read, answer.items))
    return _is_read(answer.value) if isinstance(answer, Named) else not isinstance(answer, Words | Spelling)


def _together(gold: str, final: Final) -> bool:
    """One box for each part of an answer that has several."""
    if len(final.boxes) < 2:
        return False
    wanted = read(gold)
    wanted = wanted.value if isinstance(wanted, Named) else wanted
    return isinstance(wanted, Items) and len(wanted.items) > 1 and equality.equal(gold, "; ".join(final.boxes))


def plain(text: str) -> str:
    """A spelling in which answers that only look different are equal."""
    return re.sub(r"(?<!\d) | (?!\d)", "", clean(text))
