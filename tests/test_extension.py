"""Objects of a user's own by `module:name`: the worked examples of docs/algorithm.md, as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from capo_ray.config.run import ConfigError, compose
from capo_ray.credit.advantage import algorithm_of
from capo_ray.extension import load

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`(my_\w+)\.py`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start from that holds the examples."""
    for module, code in EXAMPLES.items():
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_normaliser_of_the_docs(here: Path) -> None:
    assert set(EXAMPLES) == {"my_credit", "my_objective"}
    algorithm = algorithm_of("my_credit:BY_MEDIAN")
    rows = algorithm.normalise([[2.0, 2.0, 1.0], [0.0, -1.0]], [2.0, 0.0])
    assert rows == [pytest.approx([1.0, 1.0, 0.0], abs=1e-5), pytest.approx([-1.0, -2.0], abs=1e-5)]
    assert algorithm.normalise([[2.0], [2.0, 2.0]], [2.0, 2.0]) == [(0.0,), (0.0, 0.0)]
    config = compose(["+experiment=tiny_cpu", "algorithm.advantage=my_credit:BY_MEDIAN"])
    assert config.algorithm.advantage == "my_credit:BY_MEDIAN"


def test_it_pays_for_steps_and_so_it_needs_a_critic(here: Path) -> None:
    with pytest.raises(ConfigError, match="advantage` my_credit:BY_MEDIAN needs a `critic`"):
        compose(["+experiment=tiny_cpu", "algorithm.advantage=my_credit:BY_MEDIAN", "critic=null"])


def test_the_surrogate_of_the_docs(here: Path) -> None:
    import torch

    from capo_ray.learn.surrogate import Clip, Tokens, surrogate_of

    logprobs = torch.zeros(3, requires_grad=True)
    ratio = torch.tensor([1.0, 1.1, 1.5])
    tokens = Tokens(
        logprobs=logprobs, log_ratio=ratio.log() + logprobs, advantages=torch.ones(3), rows=torch.zeros(3).long()
    )
    made = surrogate_of("my_objective:fade")(tokens, Clip())
    made.losses.sum().backward()
    assert made.held.tolist() == [False, False, True]
    faded = torch.tensor([1.0, 1.1, 1.5 * torch.tensor(-0.3).exp()])
    assert logprobs.grad is not None and torch.allclose(-logprobs.grad, faded)
    assert compose(["+experiment=tiny_cpu", "algorithm.surrogate=my_objective:fade"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("advantage=median", "algorithm.advantage: must be one of capo, capo_mean, .*, or module:name of your own"),
        ("advantage=nowhere:X", r"nowhere:X: cannot import nowhere \(No module named 'nowhere'\); put nowhere.py into"),
        ("advantage=my_credit:BY_MEAN", "my_credit:BY_MEAN: my_credit has no BY_MEAN"),
        ("advantage=my_credit:by_median", "must be a capo_ray.credit.advantage.Algorithm, and is a function"),
        ("surrogate=my_credit:EPSILON", "must be a function of .* to a Surrogate, and is a float"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(here: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["+experiment=tiny_cpu", f"algorithm.{override}"])


def test_the_program_for_recorded_responses_takes_it_too(here: Path, test_data: Path) -> None:
    response = {"text": "1\n\n2", "outcome": 1, "critiques": ["<incorrect_steps>0</incorrect_steps>"]}
    group = {"id": "a", "responses": [response]}
    program = ("-m", "capo_ray.credit", "--tokenizer", str(test_data / "tokenizers" / "gpt2"))
    done = subprocess.run(
        [sys.executable, *program, "--advantage", "my_credit:BY_MEDIAN"],
        input=json.dumps(group),
        cwd=here,
        env={"PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"advantages": [' in done.stdout


def test_an_error_in_the_file_is_named_with_its_line(here: Path) -> None:
    (here / "my_broken.py").write_text("1 / 0")
    with pytest.raises(
        ValueError, match=r"my_broken:X: ZeroDivisionError: division by zero \(.*my_broken.py, line 1\)"
    ):
        load("my_broken:X", callable, is_a="a function")
