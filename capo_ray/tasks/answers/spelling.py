"""One spelling of an answer: what only says how it is set, named or sold is taken off, the rest is written one way.

LaTeX, plain text and Unicode come out alike: fonts, colours, sizes, spaces, dollars and Markdown go, text boxes are
opened, `\\dfrac` is `\\frac`, `<=` is `\\le`, percent is `\\pct`, a degree is `\\deg`, separated thousands are joined,
`3 2/5` is `(3+2/5)`, repeating digits are a fraction. Pure text work, linear but for nested braces; leaves out what
the answer means (reading).
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

_FONT = (
    "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|textmd|textsc|textsl|textsuperscript|emph|mbox|hbox|mathrm|mathbf|mathit"
    "|mathsf|mathtt|mathcal|mathnormal|boldsymbol|bm|pmb|underline|uline|boxed|fbox|ensuremath|operatorname\\*?|vec|hat|tilde"
    "|overrightarrow|widehat|mathop|mathbin|mathord|mathrel|textstyle|displaystyle|Large|large|LARGE|huge|Huge|small"
    "|normalsize|tiny|footnotesize|scriptsize|mathstrut|underbrace|overbrace|bf|rm|it|sf|tt|bfseries|itshape|smash|tag\\*?"
)
_OPENED = re.compile(rf"\\(?:{_FONT})(?![A-Za-z])\s*\{{([^{{}}]*)\}}")
_OLD_FONT = re.compile(r"\{\s*\\(?:rm|bf|it|sf|tt|cal|em)(?![A-Za-z])\s*([^{}]*)\}")
_BARE = re.compile(
    rf"\\(?:{_FONT}|left|right|[bB]igg?[lrm]?|limits|nolimits|middle|noindent|centering|scriptstyle|strut|relax"
    r"|qed|square|blacksquare)(?![A-Za-z])\.?"
)
_COLOUR = re.compile(
    r"\\(?:textcolor|colorbox|color)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}|\\color\s+\w+|\\fcolorbox(?:\{[^{}]*\}){2}"
)
_NOTHING = re.compile(
    r"\\(?:[hv]?phantom)\s*(?:\{[^{}]*\}|.)|\\(?:[hvmk]space\*?|hskip|kern|mkern|label)\s*\{[^{}]*\}|\\!"
)
_SPACE = re.compile(
    r"\\[,;:> ]|~|\\(?:quad|qquad|thinspace|enspace|medspace|thickspace|enskip|hfill|newline|nobreak)(?![A-Za-z])"
    r"|[\s\u200b\ufeff]+"
)
_DELIMITER = re.compile(r"(?<!\\)(?:\\\\)*\\[()\[\]]")
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "⋅": "*", "·": "*", "∙": "*", "•": "*", "∗": "*",
    "÷": "/", "⁄": "/", "∕": "/", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "∞": r"\infty ", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "Ø": r"\emptyset ", "°": r"\deg ", "º": r"\deg ", "ℝ": r"\reals ",
    "±": r"\pm ", "∓": r"\mp ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "…": r"\dots ", "∣": "|", "∠": r"\angle ",
    "€": r"\currency ", "£": r"\currency ", "¥": r"\currency ",
    "₹": r"\currency ", "“": '"', "”": '"', "’": "'", "‘": "'",
    "，": ", ", "。": ". ", "；": "; ", "、": ", ", "′": "'", "〈": "(",
    "〉": ")", "∖": r"\setminus ", "≡": r"\equiv ", "∶": ":",
}  # fmt: skip
_GREEK = {
    chr(code): f"\\{name} "
    for code, name in zip(
        [*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA)],
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "omicron",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "chi",
            "psi",
            "omega",
        ],
        strict=True,
    )
}
_ALIASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"\\(?:{names})(?![A-Za-z])"), sign)
    for names, sign in (
        ("dfrac|tfrac|cfrac|nicefrac|sfrac", r"\\frac"),
        ("dbinom|tbinom", r"\\binom"),
        ("leq|leqslant|leqq|le", r"\\le "),
        ("geq|geqslant|geqq|ge", r"\\ge "),
        ("neq|not\\s*=|ne", r"\\ne "),
        ("lt", "<"),
        ("gt", ">"),
        ("cdot|times|ast", "*"),
        ("div", "/"),
        ("colon", ":"),
        ("mid|vert|lvert|rvert", "|"),
        ("langle", "("),
        ("rangle", ")"),
        ("lbrace", r"\\{"),
        ("rbrace", r"\\}"),
        ("lbrack", "["),
        ("rbrack", "]"),
        ("lparen", "("),
        ("rparen", ")"),
        ("varnothing", r"\\emptyset "),
        ("R|Reals|mathbb\\s*\\{\\s*R\\s*\\}|mathbb\\s*R", r"\\reals "),
        ("ldots|dots|cdots|dotsc|dotsb", r"\\dots "),
        ("approx|simeq|doteq|approxeq|thickapprox", r"\\approx "),
        ("lor|vee", " or "),
        ("land|wedge", " and "),
        ("backslash|smallsetminus", r"\\setminus "),
        ("euro|pounds|yen|texteuro|textdollar", r"\\currency "),
        ("degree|textdegree", r"\\deg "),
        ("varepsilon", r"\\epsilon "),
        ("varphi", r"\\phi "),
        ("vartheta", r"\\theta "),
        ("lvert|rvert|lVert|rVert", "|"),
        ("exponentialE|mathrm\\{e\\}", "e"),
    )
)
_PERCENT = re.compile(
    r"\\?%|\bper\s*cent(?:age)?\b(?:\s+points?\b)?|\bpercent(?:age)?\b(?:\s+points?\b)?|\bpct\b\.?", re.IGNORECASE
)
_DEGREE = re.compile(
    r"\^\s*(?:\{\s*(?:\\circ|\\deg|∘|o)\s*\}|\\circ(?![A-Za-z])|\\deg(?![A-Za-z])|∘)|(?:(?<=[\d\s})])|\b)degrees?\b(?!\s+of)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?(?:answers?|ans\b\.?|result|solution(?!s?\s*set))"
    r"\s*(?:(?:is|are|=|:)\s*)+:?\s*(?!$)",
    re.IGNORECASE,
)
_NAMED_LABEL = re.compile(r"^[A-Za-z]{2}[A-Za-z ]{0,24}:\s*(?=[-\\\d])(?!.*:)")
_ABOUT = re.compile(
    r"^(?:approximately|approx\.?|about|there (?:are|is|were)|a total of|the(?=\s+\d)"
    r"|roughly|around|exactly|only|\\approx|\\sim(?![A-Za-z]))\s+(?=\S)",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(
    r"(?<=\d)(?:\s*\{\s*,\s*\}\s*|,?\s?\\!|,?\\,|,~|,\\ |\\thinspace\s?)\s*(?:\\!)?\s*(?=\d{3}(?!\d))"
)
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,_^])\d{1,3}(?:(?:\s|~)\d{3})+(?![\d,]|\s*/)")
_MIXED = re.compile(
    r"(?<![\d.\w^}_])(?<!\d\s)(\d+)(?:\s+|\s*(?=\\frac))(?:(\d+)\s*/\s*(\d+)(?![\d.a-zA-Z(])|\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\})"
)
_ORDINAL = re.compile(
    r"(?<![\d.])(\d+)\s*(?:\^\s*\{\s*(?:st|nd|rd|th)\s*\}|\^\s*(?:st|nd|rd|th)\b|[\s-]?(?:st|nd|rd|th)\b)",
    re.IGNORECASE,
)
_REPEATING = (
    re.compile(r"(?<![\d.])(\d*)\.(\d*)\s*\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?"),
    re.compile(r"(?<![\d.])(\d*)\.(\d*)\((\d+)\)(?!\s*[\^\d])"),
)
_DOTTED = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_GOES_ON = re.compile(r"(?<![\d.])(\d*)\.(\d*?)(\d{1,6}?)\3{2,}\s*(?:\\dots\s*|\.{3,})")
_SEGMENT = re.compile(r"\\(?:overline|bar)\s*\{\s*([A-Za-z]+(?:_\d)?)\s*\}|\\(?:overline|bar)\s+([A-Za-z])")
_SPECIAL = re.compile(r"<\|[^<>|\s]{1,40}\|>")
_SCALES = {"C": "celsius", "F": "fahrenheit"}
_COMPARISONS = (("<=", r"\le "), ("=<", r"\le "), (">=", r"\ge "), ("=>", r"\ge "), ("!=", r"\ne "), ("<>", r"\ne "))
_LONGEST = 2000


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """The one spelling. Answers of more than 2,000 characters are cut: none of them is read."""
    text = _unicode(_SPECIAL.sub(" ", text[:_LONGEST]))
    text = _THOUSANDS.sub("", text)
    if "\\" in text:
        text = _unset(text)
        for pattern, sign in _ALIASES:
            text = pattern.sub(sign, text)
    text = text.replace("$", " ")
    for written, sign in _COMPARISONS:
        text = text.replace(written, sign)
    text = _PERCENT.sub(r"\\pct ", _DEGREE.sub(r"\\deg ", text))
    text = re.sub(r"\\deg\s*(C|F)\b", lambda found: "\\deg " + _SCALES[found[1]], text)
    text = _SPACE.sub(" ", text)
    if ".." in text or "\\dots" in text:
        text = _GOES_ON.sub(lambda found: _fraction(found[1], found[2], found[3]), text)
    text = _unwrapped(text)
    if not any(map(str.isdigit, text)):
        return _SEGMENT.sub(lambda found: found[1] or found[2], with_braces(text)).strip()
    text = _SPACED_THOUSANDS.sub(lambda found: re.sub(r"\s|~", "", found[0]), text)
    text = _SEGMENT.sub(lambda found: found[1] or found[2], text)
    text = _repeating(_ORDINAL.sub(r"\1", text))
    return re.sub(r"\s+", " ", _MIXED.sub(_mixed, with_braces(text))).strip()


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = re.sub(f"[{''.join(_SUPER)}]+", lambda found: "^{" + "".join(map(_SUPER.__getitem__, found[0])) + "}", text)
    text = re.sub(f"[{''.join(_SUB)}]+", lambda found: "_{" + "".join(map(_SUB.__getitem__, found[0])) + "}", text)
    text = re.sub(r"√\s*(\d+)", r"\\sqrt{\1}", text)
    made = []
    for sign in text:
        if sign in _SIGNS or sign in _GREEK:
            made.append(_SIGNS.get(sign) or _GREEK[sign])
        elif unicodedata.category(sign) == "No" and "⁄" in (parts := unicodedata.normalize("NFKC", sign)):
            made.append(" " + parts.replace("⁄", "/"))
        else:
            plain = unicodedata.normalize("NFKC", sign)
            made.append(_SIGNS.get(plain, plain))
    return "".join(made)


def _unset(text: str) -> str:
    """Without fonts, colours, sizes and delimiters; text boxes are opened, from the inside out."""
    if "\\begin" in text:
        text = re.sub(r"\\\\(?:\s*\[[^\]]*\])?", r"\\cr ", text)
    else:
        text = re.sub(r"\\\\(?=[A-Za-z$%])", r"\\", text)  # escaped twice
    text = _NOTHING.sub("", _COLOUR.sub("", text))
    for _ in range(20):
        opened = _OPENED.sub(_content, text)
        if opened == text:
            break
        text = opened
    text = _OLD_FONT.sub(r" \1 ", text)
    text = _BARE.sub(" ", text)
    text = re.sub(r"\\?US\s*\\?\$|\\\$", r"\\currency ", text)
    return _DELIMITER.sub(" ", text)


def _content(box: re.Match[str]) -> str:
    return f" {box[1]} "


def _unwrapped(text: str) -> str:
    """Without Markdown, quotes, braces around the whole, labels before it and marks of punctuation behind it."""
    for _ in range(12):
        before = text
        text = text.strip()
        for mark in ("**", "__", "`", "*", '"', "'"):
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                text = text[len(mark) : -len(mark)].strip()
        if text.startswith("{") and _closes_at_end(text):
            text = text[1:-1]
        text = _ABOUT.sub("", _LABEL.sub("", _NAMED_LABEL.sub("", text)))
        text = re.sub(r"^[=:]\s*", "", text)
        text = re.sub(r"(?<!\.)[.,;:](?:\s*[.,;:])*$", "", text)
        if text == before:
            return text
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for place, sign in enumerate(text):
        if sign in "{}" and (place == 0 or text[place - 1] != "\\"):
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return place == len(text) - 1
    return False


def _repeating(text: str) -> str:
    if "." not in text:
        return text
    for pattern in _REPEATING:
        text = pattern.sub(lambda found: _fraction(found[1], found[2], found[3]), text)
    return _DOTTED.sub(
        lambda found: _fraction(found[1], found[2], found[3] + (found[4] or "") + (found[5] or "")), text
    )


def _fraction(whole: str, fixed: str, repeated: str) -> str:
    """whole.fixed(repeated) as a fraction in brackets."""
    nines = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    value = Fraction(int(f"{whole or 0}{fixed}" or "0") * (10 ** len(repeated) - 1) + int(repeated), nines)
    return f"({value.numerator}/{value.denominator})"


def _mixed(found: re.Match[str]) -> str:
    """A whole number and a proper fraction are their sum; before an improper one it is a factor."""
    above, below = found[2] or found[4], found[3] or found[5]
    if len(above) > 9 or len(below) > 9 or int(above) >= int(below) or int(found[1]) == 0:
        return found[0]
    return f"({found[1]}+{above}/{below})"


def with_braces(text: str) -> str:
    r"""\frac12 and \frac1{2} as \frac{1}{2}; \sqrt3 as \sqrt{3}."""
    made, place = [], 0
    for found in re.finditer(r"\\(frac|binom|sqrt)(?![A-Za-z])", text):
        if found.start() < place:
            continue
        made.append(text[place : found.end()])
        place = found.end()
        for _ in range(1 if found[1] == "sqrt" else 2):
            argument, place = _argument(text, place, whole=found[1] == "sqrt")
            if argument is None:
                break
            made.append(argument)
    return "".join([*made, text[place:]])


def _argument(text: str, place: int, *, whole: bool) -> tuple[str | None, int]:
    """A single sign or command behind `place` put in braces, and where it ends; a group as it stands is left to the
    caller's next round."""
    while place < len(text) and text[place] == " ":
        place += 1
    if place >= len(text):
        return None, place
    if text[place] == "{":
        depth = 0
        for end in range(place, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return "{" + with_braces(text[place + 1 : end]) + "}", end + 1
        return None, place
    found = re.compile(r"\\[A-Za-z]+|\d+|[A-Za-z]" if whole else r"\\[A-Za-z]+|[A-Za-z0-9]").match(text, place)
    if found is None or found[0] in ("\\frac", "\\sqrt", "\\binom", "\\left"):
        return None, place
    return "{" + found[0] + "}", found.end()
