"""Gold answers that cannot be right, and whether the verifier knows the others again.

A gold answer that does not grade equal to itself pays nobody; one that has no kind (docs/equality.md) pays its own
spelling alone. Leaves out reading and showing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.data.problem import Problem
from capo_ray.tasks.answers.kinds import Spelling
from capo_ray.tasks.answers.reading import read
from capo_ray.tasks.math import judge

MOST = 500
"""Different gold answers that are graded, drawn by a fixed seed: some seconds."""
ENOUGH = 0.98
"""Share of simple respellings below which a data set is warned of."""
_SPELLINGS = (
    "\\boxed{{${}$}}",
    "\\boxed{{ {}. }}",
    "The answer is ${}$.",
    "<answer>{}</answer>",
    "\\boxed{{\\text{{Answer: }}{}}}",
)
_NO_ANSWER = re.compile(
    r"\W*|none|undefined|unknown|tbd|todo|see (?:the )?(?:solution|proof|above|below|figure)\b.*"
    r"|proof\b.*|(?:omitted|error|failed)\b.*"
    r"|-?inf(?:inity)?|not? (?:given|available|answer)|true_answer|answer",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Golds:
    """Of the gold answers of a data set. `*_first` are "id: answer" of the first rows."""

    suspicious: int
    """Rows whose answer looks like none: None, unknown, see the solution."""
    suspicious_first: tuple[str, ...]
    different: int
    graded: int
    """Of the different ones."""
    itself: float
    """Share of them that are equal to themselves."""
    itself_first: tuple[str, ...]
    respelled: float
    """Share of simple respellings that are equal: in dollars, with a dot, in <answer> tags, after "The answer is"."""
    respelled_first: tuple[str, ...]
    spelled: int
    """Of those graded, without a kind: only their own spelling equals them."""
    spelled_first: tuple[str, ...]


def look_at(problems: Sequence[Problem], *, most: int = MOST) -> Golds:
    suspicious = [problem for problem in problems if _NO_ANSWER.fullmatch(problem.answer.strip())]
    first_of = {problem.answer: problem for problem in reversed(problems)}
    some = list(reversed(first_of.values()))
    drawn = some if len(some) <= most else random.Random(0).sample(some, most)
    itself = [problem for problem in drawn if not _paid(problem.answer, f"\\boxed{{{problem.answer}}}")]
    forms = [(problem, form.format(_bare(problem.answer))) for problem in drawn for form in _SPELLINGS]
    respelled = [(problem, text) for problem, text in forms if not _paid(problem.answer, text)]
    spelled = [problem for problem in drawn if isinstance(read(problem.answer), Spelling)]
    return Golds(
        suspicious=len(suspicious),
        suspicious_first=_first(suspicious),
        different=len(some),
        graded=len(drawn),
        itself=1 - len(itself) / len(drawn) if drawn else 1.0,
        itself_first=_first(itself),
        respelled=1 - len(respelled) / len(forms) if forms else 1.0,
        respelled_first=tuple(f"{problem.id}: {text[:60]!r}" for problem, text in respelled[:3]),
        spelled=len(spelled),
        spelled_first=_first(spelled),
    )


def _paid(gold: str, response: str) -> bool:
    return judge(gold, response).answer == "correct"


def _bare(gold: str) -> str:
    return gold.strip().strip("$").rstrip(".")


def _first(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(f"{problem.id}: {problem.answer[:60]!r}" for problem in problems[:3])
