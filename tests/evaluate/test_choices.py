"""The letter of an answer, however it is written, and options in a drawn order."""

import pytest

from capo_ray.evaluate.choices import LETTERS, letter_of, render, shuffled, verify_choice

OPTIONS = ("Mitosis", "meiosis of a cell", "$\\frac{1}{2}$", "None of the above")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("\\boxed{C}", "C"),
        ("\\boxed{c}", "C"),
        ("\\boxed{(C)}", "C"),
        ("\\boxed{ C. }", "C"),
        ("\\boxed{C) Mitosis, since}", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("\\boxed{\\text{(C) }}", "C"),
        ("\\boxed{\\textbf{(C)}}", "C"),
        ("\\boxed{\\mathrm{C}}", "C"),
        ("\\boxed{\\mathbf{C}\\ \\text{something}}", "C"),
        ("\\boxed{\\text{Option C}}", "C"),
        ("\\boxed{Option (B)}", "B"),
        ("\\boxed{Answer: D}", "D"),
        ("first \\boxed{A}, no: \\boxed{B}", "B"),
        ("The answer is (A). In short \\boxed{B}", "B"),
        # the text of an option in the box
        ("\\boxed{Mitosis}", "A"),
        ("\\boxed{\\text{meiosis of a cell}}", "B"),
        ("\\boxed{\\frac12}", "C"),
        ("\\boxed{\\dfrac{1}{2}}", "C"),
        ("\\boxed{None of the above}", "D"),
        ("\\boxed{E}", None),
        ("\\boxed{A cell that divides}", None),
        ("\\boxed{42}", None),
        ("\\boxed{}", None),
        # no box
        ("So the answer is (B).", "B"),
        ("The correct answer is: **C**", "C"),
        ("The correct option is C) because", "C"),
        ("Final answer: $D$", "D"),
        ("Answer: A\n", "A"),
        ("the answer is option B, clearly", "B"),
        ("The answer is \\textbf{(A)}.", "A"),
        ("The answer is B. Wait, the answer is A.", "A"),
        ("The right choice is A", "A"),
        ("I think\n\n(C)", "C"),
        ("C", "C"),
        ("C.", "C"),
        ("**D**", "D"),
        ("The answer should be B", "B"),
        ("The answer must be B.", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer>(B) meiosis of a cell</answer>", "B"),
        ("<answer>The answer is B</answer>", "B"),
        ("#### B", "B"),
        ("B. meiosis of a cell", "B"),
        ("(B) meiosis of a cell", "B"),
        ("**B.** meiosis of a cell", "B"),
        ("The answer is 'B'", "B"),
        ('The answer is "B".', "B"),
        ("The answer is definitely B.", "B"),
        ("<think>the answer is A</think>\nB", "B"),
        ("the answer is A</think>The answer is B", "B"),
        ("I choose B.", "B"),
        ("I would go with option B.", "B"),
        ("The answer is not A. It is B.", "B"),
        ("So B is correct.", "B"),
        ("(B) is the right answer", "B"),
        ("The answer is meiosis of a cell.", "B"),
        ("Answer: None of the above", "D"),
        ("答案：B", "B"),
        # nothing chosen
        ("<think>the answer is A", None),
        ("The answer is not A.", None),
        ("B. something else", None),
        ("The answer is a difficult one.", None),
        ("The answer is Carbon.", None),
        ("The answer is B-cells' doing", None),
        ("Option A looks right, and so might others", "A"),
        ("A good question. I do not know", None),
        ("", None),
    ],
)
def test_letters(response: str, letter: str | None) -> None:
    assert letter_of(response, "ABCD", OPTIONS) == letter


def test_letters_beyond_the_options_are_none() -> None:
    assert letter_of("\\boxed{J}", LETTERS[:10]) == "J"
    assert letter_of("\\boxed{J}", LETTERS[:9]) is None


def test_equal_options_are_not_told_apart() -> None:
    assert letter_of("\\boxed{same}", "AB", ("same", "same")) is None


def test_an_option_that_is_a_letter_does_not_hide_the_letter() -> None:
    """The options of a question on vitamins: the letter counts, not the text."""
    assert letter_of("\\boxed{A}", "ABC", ("C", "B", "A")) == "A"


def test_verdicts_say_why() -> None:
    assert verify_choice("A", "\\boxed{A}").answer == "correct"
    assert verify_choice("A", "\\boxed{B}").reason == "B is not A"
    found = verify_choice("A", "\\boxed{42}")
    assert (found.answer, found.extracted, found.reason) == ("wrong", "42", "no option is chosen")


def test_options_may_be_numbered_in_the_question() -> None:
    assert verify_choice("2", "\\boxed{(2)}").answer == "correct"
    assert verify_choice("2", "The answer is 3.").reason == "3 is not 2"
    assert verify_choice("2", "The answer is 2.", ("x", "y")).answer == "wrong"  # these were shown as A and B


def test_options_are_shuffled_by_seed() -> None:
    options = [str(n) for n in range(10)]
    assert shuffled(options, 0, 1) == shuffled(options, 0, 1)
    places = set()
    for seed in range(200):
        order, gold = shuffled(options, 0, seed)
        assert sorted(order) == options and order[gold] == "0"
        places.add(gold)
    assert places == set(range(10))


def test_options_are_rendered_with_letters() -> None:
    assert render(["four", "five"]) == "(A) four\n(B) five"
