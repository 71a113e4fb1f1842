"""Right respellings and wrong variants of every gold answer of the test data, and answers graded a second.

`python benchmarks/grading.py FOLDER seed=0 sample=500`: for each gold answer up to 20 spellings that are right
and 20 that are wrong (a digit, the sign, times and by 100, letters in another order, the base dropped, an exponent, a
bound opened, an element missing). Prints, by kind, how many wrong ones are paid, which has to be none, and how many
right ones are not. Tests take a sample of it. Speed is of one process, without the child that hanging answers need.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from capo_ray.config.block import Block, setting
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.program import run_program
from capo_ray.tasks.answers.equality import equal
from capo_ray.tasks.answers.kinds import Based, Items, Matrix, Named, Quantity, Ratio, Reals, Relation, Words
from capo_ray.tasks.answers.reading import read
from capo_ray.tasks.math import judge

EACH = 20
FILES = (
    ("math/math_train.jsonl.gz", "answer"),
    ("math/math500.jsonl", "answer"),
    ("math_eval/aime24.jsonl", "answer"),
    ("math_eval/amc23.jsonl", "answer"),
    ("math_eval/olympiadbench.jsonl.gz", "final_answer"),
    ("gsm8k/train.jsonl.gz", "answer"),
    ("gsm8k/test.jsonl.gz", "answer"),
)
INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d*\.\d+")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


def golds(folder: Path) -> list[str]:
    """Every gold answer, as a run would take it from its data."""
    found = []
    for name, field in FILES:
        data = (folder / name).read_bytes()
        for record in map(json.loads, (gzip.decompress(data) if name.endswith("gz") else data).splitlines()):
            value = record[field]
            text = ", ".join(value) if isinstance(value, list) else str(value)
            found.append(text.rpartition("#### ")[2].strip())
    return [gold for gold in found if gold]


def kind_of(gold: str) -> str:
    """The kind that figures are listed by."""
    if "\\%" in gold or "%" in gold:
        return "percent"
    if INTEGER.fullmatch(gold.strip()):
        return "integer"
    answer = read(gold)
    if isinstance(answer, Quantity):
        if answer.unit or re.search(r"\\\$|\\circ", gold):
            return "unit"
        return "number" if re.fullmatch(r"[\d\s.,/{}!\\-]*|.*\\[dt]?frac ?\{?\d+\}? ?\{?\d+\}?", gold) else "expression"
    names = {
        Based: "base", Items: "list, tuple", Reals: "interval", Named: "named", Relation: "relation", Matrix: "matrix",
        Ratio: "ratio", Words: "words",
    }  # fmt: skip
    return names.get(type(answer), "spelling")


# ---- right -----------------------------------------------------------------------------------------------------------

WRAPPED = (
    "${}$", "\\({}\\)", "\\boldsymbol{{{}}}", "\\mathbf{{{}}}", "\\textbf{{{}}}", "\\color{{red}}{{{}}}",
    "\\textcolor{{blue}}{{{}}}",
    "**{}**", "\\text{{Answer: }}{}", "{}.", " {} ", "\\Large{{{}}}", "{}\\,", "\\displaystyle {}",
    "{{{}}}", "\\underline{{{}}}",
    "The answer is {}", "\\boxed{{{}}}", "{},", "{}\\hspace{{2mm}}",
)  # fmt: skip
UNITS = (
    "{}\\text{{ cm}}", "{}~\\text{{cm}}", "\\text{{{} pencils}}", "{} dollars",
    "\\${}", "{} km/h", "{}\\,\\mathrm{{kg}}",
    "{} cm^2",
    "{}^\\circ", "{} degrees", "{}\\text{{ square units}}", "{} (cm)",
)  # fmt: skip
INSIDE = (
    (r"\\frac(?=\{|\d)", r"\\dfrac"),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
    (r"\\frac\{(\d+)\}\{(\d+)\}(?![\d^])", r"(\1/\2)"),
    (r"\\sqrt\{(\d+)\}", r"sqrt(\1)"),
    (r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    (r"\\pi(?![a-z])", "π"),
    (r"\\pi\b", " pi"),
    (r"\\left|\\right", ""),
    (r"\\infty", "∞"),
    (r"\\cup", "∪"),
    (r"\^\\circ|\^\{\\circ\}", "°"),
    (r"\^\\circ|\^\{\\circ\}", "\\\\text{ degrees}"),
    (r"\\%", "%"),
    (r"\\%", "\\\\text{ percent}"),
    (r"\\\$", "$"),
    (r",\\!|\{,\}", ","),
    (r"\\!|\\,", ""),
    (r"\\text\{([^{}]*)\}", r"\1"),
    (r"\\text\{", r"\\mathrm{"),
    (r"pmatrix", "bmatrix"),
    (r"_(\d+)", r"_{\1}"),
    (r"_\{(\d+)\}", r"_\1"),
    (r" ", ""),
    (r"(?<=[-+=<>,])(?=\S)", " "),
    (r"\^(\d)(?!\d)", r"^{\1}"),
)


def right(gold: str, draw: random.Random) -> list[str]:
    """Spellings of `gold`."""
    made = [gold, *(form.format(gold) for form in WRAPPED)]
    made += [re.sub(pattern, new, gold) for pattern, new in INSIDE if re.search(pattern, gold) and _may(pattern, gold)]
    bare = _whole(gold)
    if INTEGER.fullmatch(bare):
        number = int(bare)
        made += [
            f"{number}.0",
            f"{number:,}",
            f"{number:,}".replace(",", "{,}"),
            f"\\frac{{{2 * number}}}{{2}}",
            f"{number}.00",
        ]
        made += [form.format(number) for form in UNITS]
    elif found := FRACTION.fullmatch(gold.strip()):
        sign, above, below = found[1], int(found[2]), int(found[3])
        made += [
            f"{sign}{above}/{below}",
            f"{sign}\\frac{{{3 * above}}}{{{3 * below}}}",
            f"\\frac{{{sign}{above}}}{{{below}}}",
        ]
        whole, rest = divmod(above, below)
        made += [f"{sign}{whole} {rest}/{below}", f"{sign}{whole}\\frac{{{rest}}}{{{below}}}"] if whole and rest else []
        made += [f"{sign}{above / below!r}"] if Fraction(repr(above / below)) == Fraction(above, below) else []
        made += [form.format(gold) for form in UNITS[:2]]
    elif kind_of(gold) == "percent" and (value := re.match(r"\s*(\d+(?:\.\d+)?)\s*\\?%\s*$", gold)):
        made += [value[1], f"{value[1]}\\text{{ percent}}", str(float(Fraction(value[1]) / 100))]
    made = list(dict.fromkeys(made))
    return made[:1] + draw.sample(made[1:], min(EACH, len(made) - 1))


def _whole(gold: str) -> str:
    """Without the commas of thousands."""
    text = gold.strip().replace("\\!", "").replace("{,}", ",")
    return text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", text) else text


def _may(pattern: str, gold: str) -> bool:
    """Whether this spelling says the same of this gold answer."""
    if pattern in (" ", r"\\text\{([^{}]*)\}"):
        return (
            not re.search(r"\d\s+\d|\\[a-z]+ [a-zA-Z]|text|\b(?:and|or)\b|[a-z]{2} ", gold)
            if pattern == " "
            else "\\text{" in gold
        )
    if pattern == r"\\sqrt\{(\d)\}" or pattern == r"\\frac\{(\d)\}\{(\d)\}":
        return not re.search(r"\\sqrt\{\d\}\d|\}\{\d\}[\d^]", gold)
    if pattern in (r"\\frac\{(\d+)\}\{(\d+)\}(?![\d^])", r"\\[dt]frac"):
        return not re.search(r"\d\s*\\[dt]?frac", gold) and "\\tfrac" not in gold and "\\dfrac" not in gold
    return not (pattern.startswith(r"\\!") and re.search(r"\\,|\d\\!\d|,\\!", gold))


# ---- wrong -----------------------------------------------------------------------------------------------------------


def wrong(gold: str, draw: random.Random) -> list[tuple[str, str]]:
    """(what was done, variant) of `gold`."""
    made = [*_digits(gold, draw), *_signs(gold), *_hundreds(gold), *_letters(gold, draw), *_shapes(gold)]
    made = [(done, text) for done, text in dict.fromkeys(made) if text.replace(" ", "") != gold.replace(" ", "")]
    return draw.sample(made, min(EACH, len(made)))


def _digits(gold: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    places = [place for place, sign in enumerate(gold) if sign.isdigit()]
    for place in draw.sample(places, min(8, len(places))):
        for other in draw.sample([d for d in "123456789" if d != gold[place]], 2):
            yield "digit", gold[:place] + other + gold[place + 1 :]
    if len(places) > 1 and not re.search(r"[a-zA-Z,;=.]", gold):
        yield "digit lost", gold[: places[-1]] + gold[places[-1] + 1 :]


def _signs(gold: str) -> Iterator[tuple[str, str]]:
    text = gold.strip()
    if re.fullmatch(r"-?[\d.]+|-?\\[dt]?frac\{\d+\}\{\d+\}|-?\d*\\sqrt\{\d+\}", text) and text.strip("0."):
        yield "sign", text[1:] if text.startswith("-") else f"-{text}"
    if "phantom" not in text and (found := re.search(r"(?<=[\w}]) ?([+-]) ?(?=[\w\\])", text)):
        yield "sign", text[: found.start(1)] + ("-" if found[1] == "+" else "+") + text[found.end(1) :]


def _hundreds(gold: str) -> Iterator[tuple[str, str]]:
    text = _whole(gold)
    if INTEGER.fullmatch(text) and int(text):
        yield "times 100", f"{int(text) * 100}"
        yield "by 100", f"{int(text) / 100:.6f}".rstrip("0")
        yield "a hundredth of a percent", f"{int(text) / 100:.6f}".rstrip("0") + "\\%"
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?\\?%", text):
        value = Fraction(found[1])
        yield "times 100", f"{float(value * 100)}"
        yield "times 100", f"{float(value * 100)}\\%"
        yield "by 100", f"{float(value / 100)}\\%"
        yield "by 10000", f"{float(value / 10000):.10f}"
    if found := FRACTION.fullmatch(text):
        yield "times 100", f"{found[1]}\\frac{{{int(found[2]) * 100}}}{{{found[3]}}}"
        yield "turned over", f"{found[1]}\\frac{{{found[3]}}}{{{found[2]}}}" if found[2] != found[3] else f"-{text}"


def _letters(gold: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    inner = re.sub(r"\\(?:text|mbox)\{([^{}]*)\}", r"\1", gold).strip(" .,")
    if re.fullmatch(r"[A-Za-z]{2,}", inner):
        for _ in range(6):
            letters = list(inner)
            draw.shuffle(letters)
            if "".join(letters).lower() != inner.lower():
                yield "letters permuted", "".join(letters)
    if found := re.fullmatch(r"\(?([A-H])\)?", inner):
        for other in draw.sample([letter for letter in "ABCDEFGH" if letter != found[1]], 3):
            yield "another option", f"({other})"


def _shapes(gold: str) -> Iterator[tuple[str, str]]:
    if re.search(r"\d[}\s]*_ ?\{?\d+\}?\.?$", gold) and not gold.endswith(("_{10}", "_10")):
        yield "base dropped", re.sub(r"_ ?\{?\d+\}?\.?$", "", gold)
        yield "another base", re.sub(r"_ ?\{?(\d+)\}?\.?$", lambda found: f"_{{{int(found[1]) + 1}}}", gold)
    if found := re.search(r"(?<=[a-z)\d])\^\{?(\d)\}?", gold):
        yield "exponent", gold[: found.start()] + f"^{{{int(found[1]) + 1}}}" + gold[found.end() :]
    if isinstance(read(gold), Reals) or re.fullmatch(r"(?:\\left ?)?[\[(][^,()\[\]]+,[^,()\[\]]+[)\]]", gold.strip()):
        for one, other in (
            ("[", "("),
            ("(", "["),
            ("]", ")"),
            (")", "]"),
            ("\\leq", "<"),
            ("\\geq", ">"),
            ("\\le ", "<"),
        ):
            if one in gold and "f(" not in gold and "g(" not in gold:
                yield "bound opened", gold.replace(one, other, 1)
    parts = gold.split(",")
    answer = read(gold)
    if isinstance(answer, Items) and len(answer.items) == len(parts) > 1 and not re.search(r"[(\[{]", gold):
        yield "element missing", ",".join(parts[1:])
        yield "element missing", ",".join(parts[:-1])
        yield "element twice", gold + "," + parts[0]


# ---- the program -----------------------------------------------------------------------------------------------------


def compare(answers: Sequence[str], seed: int) -> tuple[Counter[str], Counter[str], list[str], list[str]]:
    """(tried, failed) by "right KIND" and "wrong KIND", what was paid though wrong, what was unpaid though right."""
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    paid, lost = [], []
    for gold in answers:
        draw = random.Random(f"{seed} {gold}")
        kind = kind_of(gold)
        for text in right(gold, draw):
            tried[f"right {kind}"] += 1
            if not equal(gold, text):
                failed[f"right {kind}"] += 1
                lost.append(f"{gold} | {text}")
        for done, text in wrong(gold, draw):
            tried[f"wrong {kind}"] += 1
            if equal(gold, text):
                failed[f"wrong {kind}"] += 1
                paid.append(f"{gold} | {text} | {done}")
    return tried, failed, paid, lost


def speed(answers: Sequence[str], seconds: float = 3.0) -> float:
    """Answers judged a second of processor time, each in a short response."""
    began, count = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        gold, other = answers[count % len(answers)], answers[(7 * count + 1) % len(answers)]
        judge(
            gold,
            f"Adding it up gives what was asked for.\n\nThe answer is $\\boxed{{{gold if count % 2 else other}}}$.",
        )
        count += 1
    return count / spent


class Settings(Block):
    """Of this program."""

    folder: AnyPath = setting("test data; FOLDER alone is it too", Path("../shared/data"))
    seed: int = setting("of the variants", 0)
    sample: int | None = setting("so many different gold answers only; null: all", None, ge=1)
    show: int = setting("failures to print of each sort", 20, ge=0)


def work(arguments: list[str]) -> int:
    options = read_own(Settings, arguments, place="folder")
    answers = sorted(set(golds(options.folder)))
    if options.sample is not None:
        answers = random.Random(options.seed).sample(answers, min(options.sample, len(answers)))
    tried, failed, paid, lost = compare(answers, options.seed)
    print(f"{len(answers):,} different gold answers\n{'kind':<16}{'right':>9}{'unpaid':>9}{'wrong':>9}{'paid':>9}")
    for kind in sorted({name.partition(" ")[2] for name in tried}):
        numbers = (tried[f"right {kind}"], failed[f"right {kind}"], tried[f"wrong {kind}"], failed[f"wrong {kind}"])
        print(f"{kind:<16}" + "".join(f"{number:>9,}" for number in numbers))
    print("\n".join(["paid though wrong:", *paid[: options.show], "unpaid though right:", *lost[: options.show]]))
    whole = [gold for gold in golds(options.folder) if INTEGER.fullmatch(gold)]
    real = [gold for gold in golds(options.folder) if not INTEGER.fullmatch(gold)]
    print(f"a second on one core: {speed(whole):,.0f} integer answers, {speed(real):,.0f} others")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True))
