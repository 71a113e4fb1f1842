"""avg@k, pass@k and maj@k against vectors of another project and against their definitions; intervals that cover."""

import json
import random
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.records.estimates import avg_at_k, estimate, maj_at_k, mean_of, pass_at_k


def cases(test_data: Path, name: str) -> list[dict]:
    return json.loads((test_data / "metric_vectors_lighteval" / f"{name}.json").read_text())["test_cases"]


def golds(case: dict) -> list[str]:
    index = case["doc"]["gold_index"]
    return [case["doc"]["choices"][n] for n in (index if isinstance(index, list) else [index])]


def expected(case: dict) -> tuple[float, float]:
    (value,) = case["expected_output"].values()
    return value, case["tolerance"]


def test_avg_at_k_agrees(test_data: Path) -> None:
    for case in cases(test_data, "avg_at_k"):
        right = [text == golds(case)[0] for text in case["model_response"]["text"]]  # theirs takes the first gold
        value, tolerance = expected(case)
        assert avg_at_k(right, case["metric_params"]["k"]) == pytest.approx(value, abs=tolerance), case["name"]


def test_pass_at_k_agrees(test_data: Path) -> None:
    for case in cases(test_data, "pass_at_k"):
        n, k = case["metric_params"]["n"], case["metric_params"]["k"]
        correct = sum(text in golds(case) for text in case["model_response"]["text"][:n])
        value, tolerance = expected(case)
        assert pass_at_k(n, correct, k) == pytest.approx(value, abs=tolerance), case["name"]


def test_maj_at_k_agrees(test_data: Path) -> None:
    for case in cases(test_data, "maj_at_k"):
        value, tolerance = expected(case)
        found = maj_at_k(case["model_response"]["text"], golds(case)[0], case["metric_params"]["k"])
        assert found == pytest.approx(value, abs=tolerance), case["name"]


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(correct: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(correct)))
    share = fmean(any(subset) for subset in combinations(correct, k))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(share)
    assert pass_at_k(len(correct), sum(correct), 1) == pytest.approx(avg_at_k(correct, len(correct)))


def test_who_gives_no_answer_has_no_vote() -> None:
    assert maj_at_k([None, None, 0], 0, 3) == 1
    assert maj_at_k([None, None, None], 0, 3) == 0
    assert maj_at_k([1, 0, 0, 1], 0, 4) == 0  # of equals the first given
    assert maj_at_k([1, 0, 0, 1], 0, 3) == 1


@pytest.mark.parametrize("k", [0, 3])
def test_k_is_within_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must be in 1\.\.2, the number of samples, got {k}"):
        pass_at_k(2, 1, k)
    with pytest.raises(ValueError, match="the number of samples"):
        avg_at_k([True, False], k)


def test_intervals_cover_the_truth() -> None:
    """Of 300 draws of 200 problems with known means, about 95 % of the intervals hold the mean."""
    rng, covered = random.Random(0), 0
    for seed in range(300):
        values = [float(sum(rng.random() < 0.3 for _ in range(4))) / 4 for _ in range(200)]
        found = estimate(values, seed)
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.3 <= found.high
    assert 270 <= covered <= 298


def test_an_interval_is_the_seeds() -> None:
    values = [n % 7 / 6 for n in range(50)]
    assert estimate(values, 7) == estimate(values, 7) != estimate(values, 8)
    assert estimate([1.0] * 9, 0).low == 1.0
    with pytest.raises(ValueError, match="needs a problem at least"):
        estimate([], 0)


def test_every_benchmark_counts_the_same() -> None:
    small, large = [1.0, 1.0], [0.0] * 100
    assert mean_of([small, large], 0).value == 0.5
    assert mean_of([small, large], 0).count == 102
