"""Word problems for a small language model: two sums each, in words of our own, with solutions step by step.

A story opens with a number of things, or with equal boxes of them; things come and go; what is left is asked for. Which
problems there are is a function of the seed. Leaves out how answers are checked: they are mathematics like any other.
"""

from __future__ import annotations

import random

from capo_ray.types import JsonDict

NAMES = ("Mia", "Omar", "Lena", "Ravi", "Nora", "Tom", "Aiko", "Sven", "Zoe", "Paul", "Ines", "Karl")
THINGS = ("shells", "stamps", "pears", "marbles", "cards", "buttons", "coins", "pencils", "plums", "beads")
GAINS = ("finds {} more", "gets {} from a friend", "buys {} more")
LOSSES = ("gives {} away", "loses {}", "sells {}")
SUMS = 2
"""In a problem."""


def word_problems(count: int, seed: int) -> list[JsonDict]:
    """`count` of them, no two alike: {"question", "solution", "answer"}."""
    rng, found = random.Random(f"word problems {seed}"), dict[str, JsonDict]()
    while len(found) < count:
        problem = _problem(rng)
        found[problem["question"]] = problem
    return list(found.values())


def _problem(rng: random.Random) -> JsonDict:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    if rng.random() < 0.4:
        boxes, each = rng.randint(2, 5), rng.randint(2, 9)
        opening, left, sums = f"{boxes} boxes with {each} {things} in each", boxes * each, [f"{boxes} * {each}"]
    else:
        left, sums = rng.randint(3, 20), list[str]()
        opening = f"{left} {things}"
    told = [f"{name} has {opening}."]
    results = [left] if sums else []
    while len(sums) < SUMS:
        happens, sign, change = _change(rng, left)
        told.append(f"{name} {happens.format(change)}.")
        sums.append(f"{left} {sign} {change}")
        left += change if sign == "+" else -change
        results.append(left)
    steps = [f"There are {sum_} = {result} {things}." for sum_, result in zip(sums, results, strict=True)]
    question = f"{' '.join(told)} How many {things} does {name} have now?"
    return {"question": question, "solution": "\n\n".join([*steps, rf"\boxed{{{left}}}"]), "answer": str(left)}


def _change(rng: random.Random, there: int) -> tuple[str, str, int]:
    """What happens to `there` things: how it is told, its sign, how many come or go. One is always left."""
    if there > 3 and rng.random() < 0.5:
        return rng.choice(LOSSES), "-", rng.randint(2, there - 1)
    return rng.choice(GAINS), "+", rng.randint(2, 12)
