"""What a critic's reply means: the parser of docs/algorithm.md section 3.

The list between the last complete pair of tags decides, whatever stands around it. What a critic thinks before it
speaks is no part of its reply (see `credit.thoughts`), and in a reply that was cut off what came before may be a draft:
there the list must be the end. Inside it only indices, the few words that critics put beside them and punctuation are
read; anything else makes the critique unreadable, so that prose with numbers in it is never taken for a list. `parse`
never raises and takes linear time.
"""

from __future__ import annotations

import re
from itertools import accumulate

from capo_ray.credit.thoughts import said
from capo_ray.types import Critique, CritiqueOutcome

_TAG = re.compile(r"<\s{0,3}(/?)\s{0,3}incorrect[_ ]steps\s{0,3}>", re.IGNORECASE)
_YES_NO = re.compile(
    r"(?:^[\W_]{0,12}+|\b(?:correct|answer|verdict|judge?ment)\b[^\w\n]{1,12})"
    r"(?:(yes)|no)\b(?![^\S\n]{1,3}(?:error|mistake|incorrect|wrong|issue|problem|step))",
    re.IGNORECASE | re.MULTILINE,
)

# A list is read by taking away what marks an index, then the indices, and looking at what is left.
_ENUMERATOR = re.compile(r"^[ \t]{0,8}[0-9]{1,3}[.)][ \t]{1,8}(?=[<*`_]{0,3}step)", re.MULTILINE)
_STEP_TAG = re.compile(r"<\s?/?\s?step[_ ]?([0-9]++)\s?/?>")
_STEP_WORD = re.compile(r"\bsteps?[ _#:]{0,3}(?=[0-9])")
_ITEM = re.compile(
    r"(?<![\w.])(-?)([0-9]++)(?:[ \t]{0,2}(?:[-–—~]|to|through)[ \t]{0,2}([0-9]++))?(?!\w|\.[0-9])"  # 5, -1, 5-7
)
_LEFT = re.compile(r"(?:[^\W\d_]++|[\s,;:.\-–—<>/_#*`'\"()\[\]{}&|$\\•∅，、；：。]++)*+")
_WORD = re.compile(r"[^\W\d_]+")
_BESIDE = frozenset(("step", "steps", "index", "indices", "number", "numbers", "the", "of", "and", "is", "are", "only"))
_BESIDE |= {"incorrect", "wrong", "erroneous", "boxed"}
_NONE = frozenset(("none", "no", "nil", "null", "na", "empty", "nothing"))
_UNSTORABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MOST_DIGITS = 9
_MOST_CHARACTERS = 20_000  # of a list, and 100 more for each step; no list of steps is longer


def parse(
    reply: str, num_steps: int, *, truncated: bool = False, critic: str = "", num_tokens: int = 0, cached: bool = False
) -> Critique:
    """Read one reply about a response of `num_steps` steps; `truncated` says that the critic was cut off."""
    reply = storable(reply)
    head, body = _last_list(reply, truncated)
    fits = body is not None and len(body) <= _MOST_CHARACTERS + 100 * num_steps
    ranges = _ranges(body.lower()) if body is not None and fits else None
    wrong_steps, num_dropped = _in_range(ranges or set(), num_steps)
    outcome: CritiqueOutcome = "ok"
    if body is None and truncated:
        outcome = "truncated"
    elif ranges is None:
        outcome = "unreadable"
    elif num_dropped and not wrong_steps:
        outcome = "out_of_range"
    yes_no = _YES_NO.search(head)
    return Critique(
        text=reply,
        outcome=outcome,
        wrong_steps=wrong_steps,
        says_correct=bool(yes_no[1]) if yes_no else None,
        num_dropped=num_dropped,
        critic=critic,
        num_tokens=num_tokens,
        cached=cached,
    )


def storable(text: str) -> str:
    """`text` as every file and terminal can take it: lone surrogates, which no UTF-8 has, and control characters other
    than tabs and line ends become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def contradicts_itself(critique: Critique) -> bool:
    """Whether a valid critique's Yes/No and list disagree: Yes with wrong steps, or No with none."""
    return critique.outcome == "ok" and critique.says_correct is bool(critique.wrong_steps)


def _last_list(reply: str, truncated: bool) -> tuple[str, str | None]:
    """What stands before the last complete pair of tags and what stands in it; all and None when there is no pair.

    Thoughts are left out. In a reply that was cut off a pair counts when nothing but white space follows it.
    """
    spoken, unfinished = said(reply)
    opened: re.Match[str] | None = None
    pair: tuple[re.Match[str], re.Match[str]] | None = None
    for tag in _TAG.finditer(spoken):
        if not tag[1]:
            opened = tag
        elif opened is not None:
            pair, opened = (opened, tag), None
    if pair is None or (truncated and (unfinished or spoken[pair[1].end() :].strip())):
        return spoken, None
    return spoken[: pair[0].start()], spoken[pair[0].end() : pair[1].start()]


def _ranges(body: str) -> set[tuple[int, int]] | None:
    """First and last index of every item; empty when the list says none, None when it cannot be read."""
    for marker, kept in ((_ENUMERATOR, ""), (_STEP_TAG, r" \1 "), (_STEP_WORD, "")):
        body = marker.sub(kept, body)
    items = {(sign, first, last or first) for sign, first, last in _ITEM.findall(body)}
    left = _ITEM.sub(" ", body)
    words = {"none"} if left.strip() in ("n/a", "n/a.") else set(_WORD.findall(left))
    if "..." in left or not _LEFT.fullmatch(left) or words - _BESIDE - _NONE:
        return None
    if bool(items) == bool(words & _NONE) and (items or words):  # both indices and a "none", or neither but words
        return None
    ranges = {(-1, -1) if sign else (_index(first), _index(last)) for sign, first, last in items}
    return None if any(first > last for first, last in ranges) else ranges


def _index(digits: str) -> int:
    """The number, or one beyond every response for more digits than any index has."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _in_range(ranges: set[tuple[int, int]], num_steps: int) -> tuple[tuple[int, ...], int]:
    """The indices below `num_steps`, ascending, and how many of the items reach beyond."""
    rises = [0] * (num_steps + 1)
    num_dropped = 0
    for first, last in ranges:
        num_dropped += first < 0 or last >= num_steps
        if 0 <= first < num_steps:
            rises[first] += 1
            rises[min(last + 1, num_steps)] -= 1
    return tuple(s for s, depth in enumerate(accumulate(rises)) if depth), num_dropped
