"""What is equal and what is not, by the kinds of docs/equality.md: pairs of gold and answer, written by hand."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from capo_ray.tasks.answers.equality import equal
from capo_ray.tasks.answers.spelling import clean

PAIRS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("equality.yaml").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("kind", PAIRS)
def test_equal(kind: str) -> None:
    lost = [(row["gold"], answer) for row in PAIRS[kind] for answer in row["equal"] if not equal(row["gold"], answer)]
    paid = [(row["gold"], answer) for row in PAIRS[kind] for answer in row["unequal"] if equal(row["gold"], answer)]
    assert (paid, lost) == ([], [])


def test_enough_was_written() -> None:
    assert sum(len(row["equal"]) + len(row["unequal"]) for rows in PAIRS.values() for row in rows) > 1200


PIECES = """
1 2 0 35 3.5 x y i e pi \\pi \\frac{1}{2} \\frac \\sqrt{2} \\sqrt ( ) [ ] \\{ \\} { } , ; : = < \\le \\ne + - * / ^ _ !
| \\% \\$ cm and or \\text{or} \\cup \\in \\infty \\emptyset \\pm \\approx f(x) \\sin \\log_2 ^\\circ A B
\\overline{3} 0. \\mid
\\begin{pmatrix} \\end{pmatrix} & \\\\ 1,000 \\lfloor \\rfloor \\binom{4}{2} ... \\boldsymbol{ p.m. _6 \ud800 ½ ²
"""


def test_nothing_written_raises() -> None:
    """Pieces of answers in any order: an answer that raised would have no verdict."""
    draw = random.Random(3)
    pieces = PIECES.split()
    for _ in range(3000):
        one, other = ("".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(2))
        equal(one, other)
        assert equal(one, one) is bool(clean(one))


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("\\sqrt{2}", "1.41421356237309", True),
        ("\\pi", "3.1415926", False),
        ("\\pi", "3.14159265", True),
        ("\\pi", "22/7", False),
        ("10^{30}+\\sqrt2", "10^{30}+1.5", False),
        ("\\sqrt{2}+\\sqrt{3}-\\sqrt{5+2\\sqrt{6}}", "0", True),
        ("e^{-200}", "0", False),
        ("9^{9^{9^{9}}}", "2", False),
    ],
)
def test_values_that_are_near(gold: str, answer: str, same: bool) -> None:
    assert equal(gold, answer) is same
