r"""What an answer is: from its spelling to one of the kinds of docs/equality.md.

Tries the kinds in turn, what is put together first. Leaves out sets of reals (sets), equations and inequalities
(relations), and comparing (equality).
"""

from __future__ import annotations

import re
from functools import partial

from capo_ray.tasks.answers import relations, sets
from capo_ray.tasks.answers.expression import Node, number, parse
from capo_ray.tasks.answers.kinds import (
    About,
    Answer,
    Based,
    Items,
    Matrix,
    Named,
    Quantity,
    Ratio,
    Reals,
    Span,
    Spelling,
    Words,
)
from capo_ray.tasks.answers.layout import balanced, split_top
from capo_ray.tasks.answers.names import FUNCTIONS, NUMBER_WORDS
from capo_ray.tasks.answers.sets import INFINITE, Read
from capo_ray.tasks.answers.spelling import clean
from capo_ray.tasks.answers.tokens import Unreadable
from capo_ray.tasks.answers.units import split_unit

_BASED = re.compile(
    r"(-?) ?(?:\(? ?([0-9A-Z][0-9A-Za-z]*) ?\)?) ?(?:_ ?\{? ?\(? ?(\d{1,2}|[a-z]+) ?\)? ?\}?"
    r"|,? ?(?:in |\(in |\()?base[- ]?(\d{1,2}|[a-z]+)\)?)",
    re.IGNORECASE,
)
_BASE_NAMES = {name: value for name, value in NUMBER_WORDS.items() if 2 <= value <= 16 or value == 20} | {
    "binary": 2,
    "octal": 8,
    "hexadecimal": 16,
}
_MATRIX = re.compile(
    r"\(? ?\\begin ?\{([pbBvV]?)(?:small)?(?:matrix|array)\}(?:\{[lcr| ]*\})?(.*)"
    r"\\end ?\{[pbBvV]?(?:small)?(?:matrix|array)\} ?\)?",
    re.DOTALL,
)
_DECIMAL = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+\.")
_WORDS = re.compile(r"[A-Za-z0-9 ,.'\"!?():;-]*[A-Za-z][A-Za-z0-9 ,.'\"!?():;-]*")
_PLAIN = re.compile(r"-?\d{1,300}(?:\.\d{1,300})?")
_MOST_ITEMS = 200
_CALLED = re.compile(rf"\b(?:{'|'.join(FUNCTIONS)})\b")


def read(text: str) -> Answer:
    """Never raises."""
    return read_clean(clean(text))


def read_clean(text: str, *, depth: int = 0) -> Answer:
    """Of a cleaned spelling."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return Quantity(parse(text), decimal=text if "." in text else "")
    if depth < _DEEPEST:
        for reader in _READERS:
            if (found := reader(text, partial(read_clean, depth=depth + 1))) is not None:
                return found
    words = re.sub(r"[^a-z0-9]", "", re.sub(r"^(?:the|an?) ", "", text.lower()))
    return Words(words) if _WORDS.fullmatch(text) and words else Spelling(text.replace(" ", ""))


def _about(text: str, read: Read) -> Answer | None:
    parts = re.split(r"\\approx ?|\bor about\b|\bwhich is (?:approximately|about)\b", text)
    if len(parts) < 2 or not parts[0].strip():
        return None
    first = read(parts[0])
    name = first.name if isinstance(first, Named) else ""
    values = (
        first.value if isinstance(first, Named) else first,
        *(read(part) for part in parts[1:]),
    )
    return Named(name, About(values)) if name else About(values)


def _joined(text: str, read: Read) -> Answer | None:
    """A list: by semicolons, commas, "and", "or"."""
    pieces = [part for part in split_top(text, ";") if part.strip()] if text.count(";") and "=" in text else []
    groups = [read(part) for part in pieces]
    if len(groups) > 1 and all(isinstance(one, Items) and one.named for one in groups):  # p = 5, q = 2; p = 7, q = 2
        return Items(tuple(Items(one.items, "()") for one in groups if isinstance(one, Items)))
    parts = [text]
    for separator in (";", r",? ?\b(?:and|or)\b ?:?", ","):
        parts = [piece for part in parts for piece in split_top(part, separator)]
    parts = [part.strip() for part in parts if part.strip()]
    if len(parts) < 2 or len(parts) > _MOST_ITEMS:
        return None
    items = [read(part) for part in parts]
    if re.search(r"\bor\b", text) and all(isinstance(item, Reals) for item in items):
        return Reals(tuple(span for item in items if isinstance(item, Reals) for span in item.spans))
    if re.search(r"\band\b", text) and (both := _between(items)):
        return both
    if any(isinstance(item, Spelling) for item in items):
        return None
    flat = _flat(items)
    named = all(isinstance(item, Named) for item in flat)
    return Items(tuple(_same_name(flat)), labelled=_are_words(parts, items), named=named)


def _between(items: list[Answer]) -> Reals | None:
    """x > 2 and x < 5."""
    if len(items) != 2 or not all(isinstance(item, Reals) and len(item.spans) == 1 for item in items):
        return None
    one, other = (item for item in items if isinstance(item, Reals))
    if one.name != other.name:
        return None
    for low, high in ((one.spans[0], other.spans[0]), (other.spans[0], one.spans[0])):
        if high.low == Node("neg", (INFINITE,)) and low.high == INFINITE:
            return Reals((Span(low.low, low.low_closed, high.high, high.high_closed),), one.name)
    return None


def _flat(items: list[Answer]) -> list[Answer]:
    """A plus-minus inside a list is two of its items."""
    return [
        inner
        for item in items
        for inner in (item.items if isinstance(item, Items) and item.brackets == "±" else (item,))
    ]


def _same_name(items: list[Answer]) -> list[Answer]:
    """x = 1, 2, 3 is of x throughout, and so says no more than 1, 2, 3; so does x_1 = 1, x_2 = 2."""
    named = [item for item in items if isinstance(item, Named)]
    stems = {re.split(r"[_'(]", item.name)[0].strip() for item in named}
    if len(stems) == 1 and (len(named) == len(items) or isinstance(items[0], Named)):
        return [item.value if isinstance(item, Named) else item for item in items]
    return items


def _are_words(parts: list[str], items: list[Answer]) -> bool:
    return all(isinstance(item, Words) for item in items) and any(len(part) > 2 for part in parts)


def _signs(text: str, read: Read) -> Answer | None:
    """1 plus or minus 2 is two answers."""
    if "\\pm" not in text and "\\mp" not in text and "+/-" not in text and "+-" not in text:
        return None
    text = text.replace("+/-", "\\pm ").replace("+-", "\\pm ")
    upper = read(text.replace("\\pm", "+").replace("\\mp", "-"))
    lower = read(text.replace("\\pm", "-").replace("\\mp", "+"))
    return Items((upper, lower), "±") if isinstance(upper, Quantity) and isinstance(lower, Quantity) else None


def _bracketed(text: str, read: Read) -> Answer | None:
    """Tuples, intervals, sets. Brackets around one answer say nothing but \\{5\\}, which is a set."""
    opening = text[:2] if text.startswith("\\{") else text[:1]
    closing = text[-2:] if text.endswith("\\}") else text[-1:]
    if opening == "{" and closing == "}" and len(split_top(text[1:-1], ",")) > 1 and balanced(text[1:-1]):
        return read(text[1:-1])
    if opening not in ("(", "[", "\\{", "]") or closing not in (")", "]", "\\}", "["):
        return None
    inside = text[len(opening) : -len(closing)].strip()
    brackets = (opening + closing).replace("\\", "")
    if not balanced(inside) or (brackets == "{}") != ("{" in brackets or "}" in brackets):
        return None
    parts = [part.strip() for part in split_top(inside, "[,;]" if brackets != "{}" else r"[,;]|\band\b")]
    if brackets == "{}":
        items = _flat([read(part) for part in parts])
        return Items(tuple(items), "{}")
    if len(parts) == 1:
        return read(inside) if not re.fullmatch(r"[A-Za-z]", inside) else Words(inside.lower())
    brackets = brackets.replace("][", "()") if opening == "]" and closing == "[" else brackets
    items = [read(part) for part in parts]
    return None if any(isinstance(item, Spelling) for item in items) else Items(tuple(items), brackets)


def _based(text: str, read: Read) -> Answer | None:
    found = _BASED.fullmatch(text)
    if found is None or not re.search(r"\d", found[2]):
        return None
    named = (found[3] or found[4]).lower()
    base = int(named) if named.isdigit() else _BASE_NAMES.get(named, 0)
    if not 2 <= base <= 36 or (re.fullmatch(r"[A-Za-z]\d*", found[2]) and base < 11):
        return None
    digits = found[1] + (found[2].upper().lstrip("0") or "0")
    if base == 10 and found[2].isdigit():
        return Quantity(parse(digits))
    return Based(digits, base)


def _ratio(text: str, read: Read) -> Answer | None:
    found = re.fullmatch(r"(.+?)\s*([ap])\.?\s?m\.?", text, re.IGNORECASE)
    half = found[2].lower() if found else ""
    text = found[1] if found else text
    text = re.sub(r"(?<=\d) to (?=\d)", ":", text)
    if ":" not in text:
        return None
    try:
        parts = [Quantity(parse(part)) for part in split_top(text, ":")]
    except Unreadable:
        return None
    zero = any(part.node == number(0) for part in parts[1:]) and not re.search(r":0\d", text.replace(" ", ""))
    return Ratio(tuple(parts), half) if len(parts) > 1 and not zero else None


def _quantity(text: str, read: Read) -> Answer | None:
    shown, percent = re.subn(r" ?\\pct ?", " ", text)
    shown = shown.strip()
    if percent > 1 or (percent and not re.search(r"\\pct\W*(?:[a-z ]+)?$", text)):
        return None
    shown = re.sub(r"^(-?) ?infinity$|^(-?) ?(?:inf|oo)$", r"\1\2\\infty", shown)
    shown = re.sub(r"\b(?:infinity|inf|oo)\b", r"\\infty ", shown)
    if re.fullmatch(r"(?:[A-Za-z] ?){2,}", shown) and not _is_named(shown):
        return _letters(shown)
    value, unit, factor = split_unit(shown)
    for candidate, of in ((value, (unit, factor)), (shown, (frozenset[str](), 1))):
        try:
            node = parse(candidate)
        except Unreadable:
            continue
        decimal = candidate.replace(" ", "") if _DECIMAL.fullmatch(candidate.replace(" ", "")) and of[1] == 1 else ""
        return Quantity(node if of[1] == 1 else Node("mul", (node, number(of[1]))), percent > 0, of[0], decimal)
    return None


def _is_named(text: str) -> bool:
    """Whether letters are a single known name, such as pi and theta, or a function of one: cos x."""
    if _CALLED.search(text):
        return True
    try:
        node = parse(text.replace(" ", ""))
    except Unreadable:
        return False
    return node.op == "constant" or (node.op == "symbol" and len(node.name) != 1)


def _letters(text: str) -> Answer:
    """Letters alone are a word or a sequence, in their order; never a product of their letters."""
    return Words(text.replace(" ", "").lower())


def _matrix(text: str, read: Read) -> Answer | None:
    found = _MATRIX.fullmatch(text)
    if found is None or found[1] in ("v", "V") or "\\begin" in found[2]:
        return None
    rows = [row for row in re.split(r"\\cr(?![a-z])", found[2]) if row.strip()]
    return Matrix(tuple(tuple(read(cell) for cell in row.split("&")) for row in rows))


_DEEPEST = 8
_READERS = (
    sets.plain_set,
    _about,
    _matrix,
    sets.member,
    _joined,
    relations.related,
    _bracketed,
    _based,
    _ratio,
    _signs,
    _quantity,
)
