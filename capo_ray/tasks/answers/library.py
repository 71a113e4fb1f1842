"""What the grammar of expressions leaves out, read by math-verify: sums, products, integrals, limits, determinants.

Of math-verify (and latex2sympy2_extended under it) only the reader is used, and only on texts with one of these
commands: its comparison has an absolute tolerance and knows no order of letters, no base and no mixed number, and
under the antlr that Hydra needs it misreads percent. Values are compared as everywhere else (value). This may hang or
exhaust memory on a degenerate text: for a child process that can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath

from capo_ray.tasks.answers import comparison, value
from capo_ray.tasks.answers.expression import parse
from capo_ray.tasks.answers.spelling import clean
from capo_ray.tasks.answers.tokens import Unreadable

_COMMANDS = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|det)(?![A-Za-z])|\\begin\s*\{[vV]matrix\}")


def serves(one: str, other: str) -> bool:
    """Whether one of two texts has something that only the library reads."""
    return bool(_COMMANDS.search(one) or _COMMANDS.search(other))


def equal(gold: str, answer: str) -> bool:
    """Whether both have one value at every point. False where one cannot be read."""
    wanted, found = _read(gold), _read(answer)
    if wanted is None or found is None:
        return False
    names = frozenset(str(symbol) for one in (wanted, found) for symbol in one.free_symbols)
    met = 0
    with mpmath.workdps(value.DIGITS):
        for at in comparison.points(names, whole=True):
            values = [_value(one, at) for one in (wanted, found)]
            if None in values or not comparison.same(*values):
                return False
            met += 1
            if not names or met == 3:
                return True
    return False


def _read(text: str) -> Any:
    """A sympy expression; what the grammar can read is not left to the library."""
    from math_verify import parse as parse_latex
    from sympy import Expr, sympify

    if not _COMMANDS.search(text):
        try:
            node = parse(clean(text))
            with mpmath.workdps(value.DIGITS):
                return sympify(mpmath.nstr(mpmath.mpmathify(value.value_of(node, {})), value.DIGITS))
        except (Unreadable, value.TooLarge, KeyError, TypeError):
            pass
    found = next(iter(parse_latex(f"\\boxed{{{text}}}", parsing_timeout=None)), None)
    return found if isinstance(found, Expr) else None


def _value(expression: Any, at: Mapping[str, Fraction]) -> Any:
    from sympy import Rational

    values = {
        symbol: Rational(at[str(symbol)].numerator, at[str(symbol)].denominator) for symbol in expression.free_symbols
    }
    found = expression.subs(values).doit().evalf(value.DIGITS)
    return mpmath.mpmathify(found) if found.is_number and found.is_finite else None
