"""What is equal and what is not, by the kinds of docs/equality.md: pairs of gold and answer, written by hand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from capo_ray.tasks.answers.equality import equal

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
