"""Where the final answer of a response stands, and what is none: thoughts, drafts, numbers said in passing."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from capo_ray.tasks.answers.final import final_answer, last_boxed
from capo_ray.tasks.math import judge

RESPONSES: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("responses.yaml").read_text(encoding="utf-8")
)["responses"]


@pytest.mark.parametrize("row", RESPONSES, ids=lambda row: str(row["gold"]))
def test_responses(row: dict[str, Any]) -> None:
    lost = [response for response in row["equal"] if judge(row["gold"], response).answer != "correct"]
    paid = [response for response in row["unequal"] if judge(row["gold"], response).answer == "correct"]
    assert (paid, lost) == ([], [])


def test_a_draft_is_no_answer() -> None:
    found = judge("6", "<think>\nSo \\boxed{6}? Let me add once more")
    assert (found.answer, found.extracted, found.reason) == ("wrong", None, "the response ends inside its thoughts")
    assert judge("3", "The answer is 27, since 9 * 3 = 27 and 30 - 27 = 3.").answer == "wrong"


def test_gold_answers_in_boxes() -> None:
    assert judge("So $x=\\boxed{3}$.", "\\boxed{3}").answer == "correct"
    assert judge("\\boxed{2}, \\boxed{3}, \\boxed{5}", "\\boxed{2,3,5}").answer == "correct"
    assert judge("  ", "\\boxed{3}").answer == "unverifiable"


def test_boxes_are_found_in_linear_time() -> None:
    assert last_boxed("\\boxed{" * 20_000 + "1}") == "1"
    assert final_answer("\\boxed{1} and " * 20_000).readings == ("1",)
    assert last_boxed("\\boxed{\\frac{1}{2} \\text{ of } \\boxed{3}}") == "\\frac{1}{2} \\text{ of } \\boxed{3}"
