"""A seeded sample of what benchmarks/grading.py does with every gold answer of the test data."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grading_benchmark", ROOT / "benchmarks" / "grading.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(program: ModuleType, answers: list[str], least: int) -> None:
    tried, failed, paid, lost = program.compare(answers, 0)
    right = sum(number for name, number in tried.items() if name.startswith("right"))
    assert sum(number for name, number in tried.items() if name.startswith("wrong")) >= least
    assert paid == []
    assert len(lost) <= 0.02 * right, lost[:20]
    by_kind = {name: failed[name] / number for name, number in tried.items() if name.startswith("right")}
    assert max(by_kind.values()) <= 0.05, by_kind


def test_wrong_variants_are_not_paid_and_right_respellings_are(program: ModuleType, test_data: Path) -> None:
    """Of every kind some, so that the sample is not of integers alone."""
    by_kind: dict[str, list[str]] = {}
    for gold in sorted(set(program.golds(test_data))):
        if len(gold) < 80:
            by_kind.setdefault(program.kind_of(gold) if not gold.isdigit() else "integer", []).append(gold)
    sample = [
        gold for kind in sorted(by_kind) for gold in random.Random(7).sample(by_kind[kind], min(12, len(by_kind[kind])))
    ]
    check(program, sample, least=1000)


@pytest.mark.long
def test_all_of_them(program: ModuleType, test_data: Path) -> None:
    check(program, sorted(set(program.golds(test_data))), least=10_000)


def test_a_verifier_without_order_would_be_seen(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "equal", lambda gold, text: sorted(gold) == sorted(text))
    with pytest.raises(AssertionError):
        check(program, ["\\text{CBAD}", "LQSX"], least=1)
