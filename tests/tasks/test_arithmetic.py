"""The tiny world: its truth, its splits, its flawed solutions, its tokenizer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from capo_ray.credit.reply import parse as parse_reply
from capo_ray.credit.tokens import TokenTable
from capo_ray.records.tally import Truth
from capo_ray.tasks.arithmetic import flaws, lessons, measure
from capo_ray.tasks.arithmetic.flaws import Rates, write
from capo_ray.tasks.arithmetic.world import (
    Difficulty,
    apply,
    check,
    judge,
    make_problem,
    parse,
    problems,
    split_of,
    verify_answer,
)
from capo_ray.types import Verification

QUESTION = "Start with 17. Add 5, subtract 8, then add 9."
BOX = "The answer is \\boxed{%d}."
NO_FLAWS = Rates(slip=0, recovered=0, cancelled=0, misquoted=0, skipped=0, box=0)


def response(*steps: str) -> str:
    return "\n\n".join(steps)


@pytest.mark.parametrize(
    ("name", "steps", "answer_right", "steps_right"),
    [
        ("clean", ("17 + 5 = 22.", "22 - 8 = 14.", "14 + 9 = 23.", BOX % 23), True, "rrrr"),
        ("slip carried on", ("17 + 5 = 23.", "23 - 8 = 15.", "15 + 9 = 24.", BOX % 24), False, "wrrr"),
        ("recovered", ("17 + 5 = 23.", "22 - 8 = 14.", "14 + 9 = 23.", BOX % 23), True, "wrrr"),
        ("recovered in the box", ("17 + 5 = 22.", "22 - 8 = 14.", "14 + 9 = 24.", BOX % 23), True, "rrwr"),
        ("cancelled", ("17 + 5 = 23.", "23 - 8 = 14.", "14 + 9 = 23.", BOX % 23), True, "wwrr"),
        ("misquoted operand", ("17 + 6 = 22.", "22 - 8 = 14.", "14 + 9 = 23.", BOX % 23), True, "wrrr"),
        ("misquoted, consistent", ("17 + 6 = 23.", "23 - 8 = 15.", "15 + 9 = 24.", BOX % 24), False, "wrrr"),
        ("wrong sign", ("17 - 5 = 12.", "12 - 8 = 4.", "4 + 9 = 13.", BOX % 13), False, "wrrr"),
        ("skipped", ("17 + 5 = 22.", "22 + 9 = 31.", BOX % 31), False, "rrr"),
        ("skipped first", ("17 - 8 = 9.", "9 + 9 = 18.", BOX % 18), False, "rrr"),
        ("skipped all", (BOX % 17,), False, "w"),
        ("answer without steps", (BOX % 23,), True, "w"),
        ("answer before the last step", ("17 + 5 = 22.", "22 - 8 = 14.", BOX % 23), True, "rrw"),
        ("done silently", ("17 + 5 = 22.", "14 + 9 = 23.", BOX % 23), True, "rrr"),
        ("wrong box", ("17 + 5 = 22.", "22 - 8 = 14.", "14 + 9 = 23.", BOX % 24), False, "rrrw"),
        ("wrong start", ("17 + 5 = 22.", "21 - 8 = 13.", "13 + 9 = 22.", BOX % 22), False, "rwrr"),
        ("order changed", ("17 - 8 = 9.", "9 + 5 = 14.", "14 + 9 = 23.", BOX % 23), True, "rwrr"),
        ("done twice", ("17 + 5 = 22.", "22 + 5 = 27.", "27 - 8 = 19.", "19 + 9 = 28.", BOX % 28), False, "rwrrr"),
        ("no box", ("17 + 5 = 22.", "22 - 8 = 14.", "14 + 9 = 23."), False, "rrr"),
        ("prose", ("Let us see.", "17 + 5 = 22.", "22 - 8 = 14.", "14 + 9 = 23.", BOX % 23), True, "wrrrr"),
        ("cut off", ("17 + 5 = 22.", "22 - 8 ="), False, "rw"),
        ("after the box", ("17 + 5 = 22.", BOX % 23, "22 - 8 = 14.", BOX % 14), False, "rwww"),
        ("empty", ("",), False, "w"),
    ],
)
def test_every_step_has_its_truth(name: str, steps: tuple[str, ...], answer_right: bool, steps_right: str) -> None:
    truth = Truth(answer_right, tuple(mark == "r" for mark in steps_right))
    assert check(QUESTION, response(*steps)) == truth


def test_steps_are_those_of_the_credit_core() -> None:
    assert check(QUESTION, "\n\n17 + 5 = 22.\n\n\n\n22 - 8 = 15.\n\n").steps_right == (True, False)


@pytest.mark.parametrize("difficulty", [Difficulty(), Difficulty(operations=(1, 1)), Difficulty(largest_operand=40)])
def test_question_and_solution_agree_with_the_checker(difficulty: Difficulty) -> None:
    for problem in problems(3, 200, difficulty):
        assert parse(problem.question) == problem
        assert all(0 <= value <= 99 for value in problem.values)
        assert difficulty.operations[0] <= len(problem.operations) <= difficulty.operations[1]
        assert check(problem.question, problem.solution) == Truth(True, (True,) * (len(problem.operations) + 1))


def test_a_problem_is_a_pure_function_of_seed_and_index() -> None:
    assert problems(1, 50)[20:] == problems(1, 30, first=20) == [make_problem(1, index) for index in range(20, 50)]
    assert problems(1, 50) != problems(2, 50)
    script = "from capo_ray.tasks.arithmetic.world import problems; print([p.question for p in problems(1, 5)])"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([problem.question for problem in problems(1, 5)])


def test_held_out_problems_are_never_in_training() -> None:
    train = {problem.question for problem in problems(0, 3000)} | {problem.question for problem in problems(9, 3000)}
    held_out = {problem.question for problem in problems(0, 1000, split="held_out")}
    assert not train & held_out
    assert all(split_of(parse(question)) == "held_out" for question in held_out)


@pytest.mark.parametrize("question", ["What is 2 + 2?", "Start with 17. Add 5, divide by 8.", "Start with 17."])
def test_other_questions_are_refused(question: str) -> None:
    with pytest.raises(ValueError, match="not a question of the arithmetic world"):
        check(question, "")


@pytest.mark.parametrize(
    ("difficulty", "message"),
    [({"operations": (3, 2)}, "fewest, most"), ({"largest_operand": 0}, "largest_operand")],
)
def test_bad_difficulties_are_refused(difficulty: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Difficulty(**difficulty)  # type: ignore[arg-type]


def test_flawed_solutions_fill_every_cell_of_the_table() -> None:
    table: Counter[tuple[bool, bool]] = Counter()
    for index, problem in enumerate(problems(4, 4000)):
        truth = check(problem, write(problem, random.Random(index), Rates()))
        table[truth.answer_right, truth.process_right] += 1
    assert min(table[a, p] for a in (True, False) for p in (True, False)) > 0.12 * 4000, table
    assert 0.25 < table[True, True] / 4000 < 0.6, table


@pytest.mark.parametrize(
    ("flaw", "cells"),
    [
        ("slip", {(True, True), (False, False)}),
        ("recovered", {(True, True), (True, False)}),
        ("cancelled", {(True, True), (True, False)}),
        ("misquoted", {(True, True), (True, False)}),
        ("misapplied", {(True, True), (False, False)}),
        ("box", {(True, True), (False, False)}),
    ],
)
def test_each_flaw_lands_in_its_cell(flaw: str, cells: set[tuple[bool, bool]]) -> None:
    met: Counter[tuple[bool, bool]] = Counter()
    for index, problem in enumerate(problems(5, 500)):
        text = write(problem, random.Random(index), _only(flaw))
        truth = check(problem, text)
        met[truth.answer_right, truth.process_right] += 1
    assert sum(met[cell] for cell in cells) >= 0.97 * 500, met  # two flaws in one solution may meet by chance
    assert all(met[cell] for cell in cells), met


def test_a_sum_that_a_step_is_held_against_is_a_fact() -> None:
    """Whatever is wrong with the step: the critic's lessons are made of it."""
    rates = Rates(slip=0.1, misread=0.1, recovered=0.05, cancelled=0.05, misquoted=0.1, misapplied=0.2, skipped=0.1)
    for index, problem in enumerate(problems(8, 500)):
        for step in judge(problem, write(problem, random.Random(index), rates)):
            if step.sum:
                start, sign, operand = step.sum.split()
                assert step.due == apply(int(start), ("+" if sign == "+" else "-", int(operand)))


def test_what_is_skipped_leaves_every_step_right() -> None:
    for index, problem in enumerate(problems(6, 300)):
        truth = check(problem, write(problem, random.Random(index), _only("skipped")))
        assert truth.process_right


def test_without_flaws_the_solution_comes_out() -> None:
    for index, problem in enumerate(problems(7, 50)):
        assert write(problem, random.Random(index), NO_FLAWS) == problem.solution


def test_a_mistaken_number_is_another_one() -> None:
    rng = random.Random(0)
    for value in range(100):
        wrong = {flaws.mistaken(value, rng) for _ in range(50)}
        assert value not in wrong
        assert all(0 <= number <= 99 for number in wrong)


def test_the_world_needs_no_engine() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'tokenizers', 'ray', 'vllm', 'deepspeed'): sys.modules[name] = None\n"
        "import capo_ray.tasks.arithmetic.world, capo_ray.tasks.arithmetic.flaws"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_verifier_says_what_it_read_and_why_that_is_wrong() -> None:
    assert verify_answer(QUESTION, response("17 + 5 = 22.", BOX % 23)) == Verification(answer="correct", extracted="23")
    assert verify_answer(QUESTION, response(BOX % 22, BOX % 24)) == Verification(
        answer="wrong", extracted="24", reason="24 is not 23"
    )
    assert verify_answer(QUESTION, "I guess \\boxed{23} or so") == Verification(
        answer="wrong", reason="no step closes with \\boxed{NUMBER}"
    )


def test_a_step_is_told_what_it_should_have_stated() -> None:
    steps = judge(QUESTION, response("17 + 6 = 22.", "22 - 8 = 14.", "Hm.", "14 + 9 = 24.", BOX % 25))
    assert [(step.said, step.due) for step in steps] == [(22, 23), (14, 14), (None, None), (24, 23), (25, 24)]


def test_a_critique_without_noise_is_the_truth() -> None:
    exact = lessons.Noise(missed=0, alarm=0)
    for index, problem in enumerate(problems(8, 200)):
        rng = random.Random(index)
        steps = judge(problem, write(problem, rng, Rates().scaled(3)))
        parsed = parse_reply(lessons.reply(steps, rng, exact), len(steps))
        assert parsed.outcome == "ok"
        assert parsed.wrong_steps == tuple(index for index, step in enumerate(steps) if not step.right)
        assert parsed.says_correct is (not parsed.wrong_steps)


def test_the_noise_of_lessons_has_its_rates() -> None:
    noise, rng = lessons.Noise(missed=0.3, alarm=0.1), random.Random(0)
    missed = sum(not noise.calls_wrong(False, rng) for _ in range(4000)) / 4000
    alarm = sum(noise.calls_wrong(True, rng) for _ in range(4000)) / 4000
    assert missed == pytest.approx(0.3, abs=0.03)
    assert alarm == pytest.approx(0.1, abs=0.02)


def test_lessons_leave_held_out_problems_out() -> None:
    asked = [lesson[0]["content"] for lesson in lessons.policy_lessons(1, 500)]
    assert all(split_of(parse(question)) == "train" for question in asked)


def test_quality_and_votes() -> None:
    truths = [(True, False, False), (True, True)]
    critiques: list[list[set[int] | None]] = [[{1}, {0, 1}, None], [{0}, set(), {0}]]
    union = [measure.voted(each, 1e-9) for each in critiques]
    assert union == [{0, 1}, {0}]
    assert [measure.voted(each, 1.0) for each in critiques] == [{1}, set()]
    assert measure.voted([None], 1.0) is None
    assert measure.quality(truths, union) == measure.Quality(precision=1 / 3, recall=1 / 2)


def _asset_tokenizer(name: str) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(measure.ASSETS / name / "tokenizer.json"))


def test_policy_and_critic_share_one_tokenizer() -> None:
    policy, critic = (measure.ASSETS / name / "tokenizer.json" for name in ("tiny_policy", "tiny_critic"))
    assert policy.read_bytes() == critic.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "17 + 5 = 22.\n\nThe answer is \\boxed{22}.",
        "Gr\u00fc\u00dfe  \u6f22\u5b57 \U0001f642\t\r\n\n\n x^2 12345 \\frac{1}{2} </step_0><incorrect_steps>",
        "\x00\x7f\u200b",
    ],
)
def test_the_tokenizer_encodes_any_text_and_back(text: str) -> None:
    tokenizer = _asset_tokenizer("tiny_policy")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    table = TokenTable.from_tokenizer_json(json.loads((measure.ASSETS / "tiny_policy" / "tokenizer.json").read_text()))
    assert table.decode(ids)[0] == text


def test_numbers_are_one_token_and_a_step_ends_inside_one() -> None:
    tokenizer = _asset_tokenizer("tiny_policy")
    assert all(len(tokenizer.encode(str(number)).ids) == 1 for number in range(100))
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode("17 + 5 = 22.\n\n22 - 8 = 14.").ids]
    assert tokens == ["17", " + ", "5", " = ", "22", ".\n\n", "22", " - ", "8", " = ", "14", "."]


def _only(flaw: str) -> Rates:
    return Rates(**{name: 0.1 if name == flaw else 0.0 for name in Rates.__slots__})
