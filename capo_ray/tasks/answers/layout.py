"""How an answer is laid out: cut outside of its brackets, and what in it is a name that a value can have."""

from __future__ import annotations

import re

_NAME = re.compile(
    r"(?:\\angle ?|\\triangle ?|m ?\\angle ?|\|)?"
    r"(?:[A-Za-z]|\\(?!frac|sqrt|sin|cos|tan|log|ln|pi\b|pct|deg|infty)[a-z]+|[A-Z](?: ?[A-Z]){0,4})"
    r"(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]|\\[a-z]+)| ?'+)*"
    r"(?: ?[A-Z](?:_\{?\w\}?)?)*(?:\^\{?[*']\}?)?\|?(?: ?\( ?[A-Za-z0-9](?: ?, ?[A-Za-z0-9])* ?\))?"
)
_TUPLE_NAME = re.compile(r"\( ?[A-Za-z](?:_\{?\w+\}?)?(?: ?, ?[A-Za-z](?:_\{?\w+\}?)?)+ ?\)")
_FRACTION_NAME = re.compile(r"\\frac\{ ?[A-Z]{1,3} ?\}\{ ?[A-Z]{1,3} ?\}")


def split_top(text: str, separator: str) -> list[str]:
    """`text` cut where `separator` matches outside of all brackets."""
    parts, start, depth, place = [], 0, 0, 0
    pattern = re.compile(separator)
    while place < len(text):
        sign = text[place]
        if sign == "\\" and text[place : place + 2] in ("\\{", "\\}"):
            depth += 1 if text[place + 1] == "{" else -1
            place += 2
            continue
        if depth == 0 and (found := pattern.match(text, place)) and found[0]:
            parts.append(text[start:place])
            place = start = found.end()
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(sign, 0)
        depth = max(depth, 0)
        place += 1
    return [*parts, text[start:]]


def balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


def is_name(text: str) -> bool:
    """Whether `text` is a name that a value can have: a symbol, f(x), AB, an angle, (x, y)."""
    text = text.strip()
    if re.fullmatch(r"\\?(?:P|Pr|E|Var|Cov)\s*[(\[].{1,60}[)\]]", text):
        return True
    return bool(_NAME.fullmatch(text) or _TUPLE_NAME.fullmatch(text) or _FRACTION_NAME.fullmatch(text)) or bool(
        re.fullmatch(r"[A-Za-z][a-z]{2,}(?: [A-Za-z]+){0,4}", text)
    )


def one_name(one: str, other: str) -> bool:
    """Whether two names can be of one value: equal, one with a subscript that the other leaves out, or words."""
    one, other = (re.sub(r"[\s{}\\|]|(?:m ?\\)?angle|triangle", "", name) for name in (one, other))
    if one == other or (one.isupper() and one.isalpha() and sorted(one) == sorted(other)):
        return True
    stems = [re.split(r"[_('^]", name)[0] for name in (one, other)]
    if stems[0] == stems[1]:
        return stems[0] in (one, other)
    return any(re.fullmatch(r"[A-Za-z][a-z]{3,}", stem) for stem in stems)
