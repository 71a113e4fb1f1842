"""Units and the names of things counted: taken off a number, and compared where both answers name one.

`24 cm`, `24 pencils` and `\\$24` are the number 24 with something said of it. Measures have one name each (`inches` is
`in`); two different measures are two different answers. Leaves out converting, but for cents.
"""

from __future__ import annotations

import re

from capo_ray.tasks.answers.names import FUNCTIONS, GREEK

_MEASURES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre cms",
    "dm": "decimeter",
    "km": "kilometer kilometre kms",
    "m": "meter metre mtr",
    "inch": "inche inches",
    "ft": "foot feet",
    "yd": "yard yds",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kgs kilo",
    "lb": "pound lbs",
    "oz": "ounce",
    "ml": "milliliter millilitre mL",
    "l": "liter litre L",
    "gal": "gallon",
    "qt": "quart",
    "s": "second sec secs",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr yrs",
    "ms": "millisecond",
    "mph": "",
    "kmh": "kph kmph",
    "dollar": "usd buck",
    "cent": "",
    "euro": "eur",
    "rupee": "rs inr",
    "square": "sq",
    "cubic": "cu",
    "acre": "",
    "hectare": "ha",
    "celsius": "",
    "fahrenheit": "",
    "radian": "rad",
    "j": "joule J",
    "n": "newton N",
    "w": "watt W",
    "v": "volt V",
    "hz": "hertz",
    "mol": "mole",
    "pa": "pascal",
    "kw": "kilowatt",
    "am": "",
    "pm": "",
}
_NAME_OF = {word: name for name, words in _MEASURES.items() for word in (name, *words.split())}
_SHORT_WORDS = """
men man dog cat day way box bag car boy pen cup egg hat ant bee cow pig toy bus cap can jar key map nut pie pot rod
row set tie toe top van hen fox bat bit fan gem jet job mug net oak pea pet pin rat rug sow tax tea tin ton tub vat
zoo kid sum all of per in the to go more each old new
"""
_SHORT = frozenset(_SHORT_WORDS.split())
_IGNORED_WORDS = """
unit of the per in a an each total altogether left there are is on at for
"""
_IGNORED = frozenset(_IGNORED_WORDS.split())
_ALONE = {"m", "s", "g", "h", "L", "l", "N", "J", "W", "V"}
"""Single letters that are units behind a space."""
_MULTIPLE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_CHANGES_WORDS = """
half halves quarter quarters tenth tenths hundredth hundredths thousandth thousandths squared cubed factorial or and
not less plus minus times over base mod negative root pi score gross pair pairs power divided out if where when
fourths fifths sixths eighths least most than but no none wrong incorrect false infinity mean thirds modulo zero one
two three four five six seven eight nine ten except without dozens
"""
_CHANGES = frozenset(_CHANGES_WORDS.split())
"""Words that say more than what is counted: a number with one of them is not read."""
_NAMES = {*FUNCTIONS, *GREEK, "infinity", "inf"}
_WORD = r"[A-Za-z]+\.?"
_UNIT = rf"{_WORD}(?:\s*\^\s*(?:\{{\s*-?\d\s*\}}|-?\d))?"
_PREFIX = re.compile(r"^(-?)\s*(?:(?:US|Rs|USD|EUR|INR|GBP|CAD|AUD)\b\.?\s*|\\currency\s*)+(-?)")


def split_unit(text: str) -> tuple[str, frozenset[str], int]:
    """(the number's text, the unit's words, what the number is to be multiplied with) of a cleaned answer."""
    words: frozenset[str] = frozenset()
    if prefix := _PREFIX.match(text):
        text, words = (
            (prefix[1] or prefix[2]) + text[prefix.end() :],
            frozenset({"dollar"} if "currency" in prefix[0] else ()),
        )
    text = re.sub(r"\s*\\currency\s*$", "", text)
    text = re.sub(r"(?<=[\d)}])\s*\\frac\{ ?([a-z]{2,4}) ?\}\{ ?([a-z]{1,4}) ?\}$", r" \1/\2", text)
    text = re.sub(r"(?<=\d)\s*([ap])\.?\s?m\b\.?$", r" \1m", text, flags=re.IGNORECASE)
    inner = re.fullmatch(r"[(\[]\s*([^()\[\],]*\d\s+[A-Za-z]{2,}[^()\[\],]*)[)\]]", text)
    text = inner[1] if inner else text
    for found in _tails(text):
        tail = found["tail"].strip("()[] ")
        parts = re.findall(r"[A-Za-z]+", re.sub(r"\^\s*\{?\s*(-?\d)\s*\}?", r" power\1 ", tail))
        number_alone = (
            re.fullmatch(r"(?:\\(?:frac|sqrt|pi|pct|deg)(?![A-Za-z])|[^A-Za-z\\])*", found["number"]) is not None
        )
        spaced = number_alone and (bool(found["gap"]) or found["tail"][0] in "([")
        if (read := _words(parts, tail, spaced=spaced)) is not None:
            return found["number"].strip(), words | read[0], read[1]
    return text, words, 1


def _tails(text: str) -> list[re.Match[str]]:
    """The ways to cut words off the end, the most words first."""
    if not re.search(r"[A-Za-z][.)\]}{\d^\s-]*$", text) or "\\begin" in text:
        return []
    ways = []
    for start in re.finditer(r"(?<=[\d)\]}!])\s*(?=[(\[]?[A-Za-z])|\s+(?=[(\[]?\s*[A-Za-z])", text):
        if start.start() == 0:
            continue
        tail = text[start.end() :]
        found = re.fullmatch(
            rf"(?P<tail>(?:[(\[]\s*{_UNIT}(?:[\s/*.,'-]+{_UNIT})*\s*[)\]])|{_UNIT}(?:[\s/*.,'-]+{_UNIT})*)\s*[.,]?",
            tail,
        )
        if found and (
            whole := re.match(
                rf"(?P<number>{re.escape(text[: start.start()])})(?P<gap>\s*)(?P<tail>.*)", text, re.DOTALL
            )
        ):
            ways.append(whole)
    return ways[:12]


def _words(parts: list[str], tail: str, *, spaced: bool) -> tuple[frozenset[str], int] | None:
    """(names, factor) of the words behind a number; None where they are no unit."""
    names: set[str] = set()
    factor = 1
    compound = "/" in tail or "^" in tail or " per " in tail
    for place, word in enumerate(parts):
        small = word.lower()
        if (small in _CHANGES and not (small == "power" and compound)) or word in _NAMES:
            return None
        if small == "power":
            continue
        if small in _MULTIPLE and not names:
            factor *= _MULTIPLE[small]
            continue
        stem = small.rstrip("s") if len(small) > 3 else small
        name = _NAME_OF.get(word) or _NAME_OF.get(small) or _NAME_OF.get(stem)
        known = name is not None and (len(word) > 1 or (spaced and (word in _ALONE or compound)))
        if small in _IGNORED and place:
            continue
        if not known and not (len(word) > 3 or small in _SHORT or (place and len(word) > 1)):
            return None
        if small == "in" and (place == len(parts) - 1 or parts[place + 1] == "power"):
            names.add("inch")
        elif small not in _IGNORED and stem not in _IGNORED:
            names.add(name or stem)
    names |= {
        {"2": "square", "3": "cubic"}.get(power, "power" + power) for power in re.findall(r"\^\s*\{?\s*(-?\d)", tail)
    }
    return frozenset(names - {"square", "cubic"} if names <= {"square", "cubic"} else names), factor


def agree(gold: frozenset[str], found: frozenset[str]) -> bool:
    """Whether two units can be of one answer: one of them says nothing, or they share a word and no measure differs."""
    if not gold or not found:
        return True
    measures = [words & _MEASURES.keys() for words in (gold, found)]
    if measures[0] and measures[1]:
        return measures[0] == measures[1]
    return bool(gold & found)
