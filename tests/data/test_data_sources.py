"""Where problems come from: parquet, folders, the hub, verl's layout, nested columns, answers out of texts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.blocks import Data
from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.data.problem import DataError, Problem
from capo_ray.data.prompts import same_question, usable
from capo_ray.data.read import problems


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(records), path)
    return path


def read(path: Path, **options: Any) -> list[Problem]:
    return usable(Data(path=str(path), **options))


def fault(path: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        usable(Data(path=str(path), **options))
    return str(caught.value)


def of_conf(name: str, path: Path) -> Data:
    """The data set of conf/data/NAME.yaml, from a file."""
    return compose(["+experiment=llama1b_grpo", f"data={name}", f"data.path={path}"]).data


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def verl(messages: Any, answer: Any = "7", index: int = 0) -> dict[str, Any]:
    return {
        "data_source": "some/set",
        "prompt": messages,
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index, "split": "train"},
    }


def test_verls_layout(tmp_path: Path) -> None:
    rows = [verl(talk(("user", "3 + 4?"))), verl(talk(("system", "Be brief."), ("user", "3 + 5?")), "8", 1)]
    path = parquet(tmp_path / "train.parquet", rows)
    first, second = usable(of_conf("verl", path))
    assert (first.id, first.question, first.answer, first.system) == ("train.parquet:1", "3 + 4?", "7", None)
    assert (second.question, second.answer, second.system) == ("3 + 5?", "8", "Be brief.")
    named = {"question_field": "prompt", "answer_field": "reward_model.ground_truth", "id_field": "extra_info.index"}
    assert [problem.id for problem in read(path, **named)] == ["0", "1"]


def test_messages_that_are_no_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [verl(talk(("user", "a"), ("assistant", "b"), ("user", "c")))])
    named = {"question_field": "prompt", "answer_field": "reward_model.ground_truth"}
    assert fault(path, **named) == (
        "x.jsonl, line 1: field 'prompt' holds the messages user, assistant, user; a prompt is one of a user, after at "
        "most one system message"
    )
    path = write(path, [verl([1, 2])])
    assert fault(path, **named) == (
        "x.jsonl, line 1: field 'prompt' is a list, must be a text or messages with a role and a content"
    )


def test_dotted_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"a": {"b": {"c": "q"}, "d": 1}, "a.d": "literal", "e": "2"}])
    (problem,) = read(path, question_field="a.b.c", answer_field="a.d")
    assert (problem.question, problem.answer) == ("q", "literal")
    assert fault(path, question_field="a.b.x", answer_field="e") == (
        "x.jsonl, line 1: no field 'a.b.x'; there are a.b.c, a.d, a.d, e: set data.question_field"
    )


def test_answers_out_of_texts(tmp_path: Path) -> None:
    solutions = [
        "So \\boxed{\\frac{1}{2}}.",
        "First \\boxed{1}, then \\boxed{2}.",
        "It is $x = \\boxed 9$.",
        "A proof.",
    ]
    path = write(tmp_path / "x.jsonl", [{"problem": str(n), "solution": text} for n, text in enumerate(solutions)])
    found = [problem for problem in problems(of_conf("math", path)) if isinstance(problem, Problem)]
    assert [problem.answer for problem in found] == ["\\frac{1}{2}", "2", "9", ""]
    path = write(tmp_path / "list.jsonl", [{"question": "roots?", "answer": ["1", 2.5]}])
    assert [problem.answer for problem in read(path)] == ["1, 2.5"]


def test_ids_must_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"name": n, "question": "q", "answer": "a"} for n in ("a", "b", "a")])
    assert fault(path, id_field="name") == (
        f"{path}: problems 1 and 3 have the id 'a'; set data.id_field=null, or name a column whose values differ"
    )


def test_bad_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing")
    assert fault(tmp_path / "x.parquet").startswith(f"data.path: {tmp_path}/x.parquet cannot be read after row 0: ")
    path = parquet(tmp_path / "y.parquet", [{"question": "q", "answer": "1"}, {"question": None, "answer": "1"}])
    assert len(usable(Data(path=str(path)))) == 1  # what asks nothing is left out


def test_other_kinds_of_files(tmp_path: Path) -> None:
    path = write(tmp_path / "x.arrow", [[]])
    kinds = ".jsonl, .json, .csv, .tsv, .parquet"
    assert fault(path) == f"data.path: {path} is of a kind that is not read; make it one of {kinds}"


def test_same_questions() -> None:
    assert same_question("What is  $x + 1$?") == same_question("what is x+1")
    assert same_question("What is x + 1?") != same_question("What is x - 1?")


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub has them, with two configurations and two splits."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "copy"
    files = {"main": ("train", "test"), "other": ("train",)}
    lines = ["configs:"]
    for subset, splits in files.items():
        (folder / subset).mkdir(parents=True)
        lines += [f"- config_name: {subset}", "  data_files:"]
        for split in splits:
            rows = [{"question": f"{subset} {split} {n}?", "answer": f"so\n#### {n}"} for n in range(3)]
            write(folder / subset / f"{split}.jsonl", rows)
            lines += [f"  - split: {split}", f"    path: {subset}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]))
    return folder


@pytest.mark.parametrize("name", ["set [v2]", "a*", "b?"])
def test_a_folder_that_is_read_as_a_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "takes brackets, * and ? in" in fault(tmp_path / name)


def test_a_folder_as_the_hub_has_them(hub_folder: Path) -> None:
    data = of_conf("gsm8k", hub_folder)
    found = usable(data)
    assert [(p.id, p.question, p.answer) for p in found[:1]] == [("copy:1", "main train 0?", "0")]
    (first, *_) = usable(data.model_copy(update={"subset": "main", "split": "test"}))
    assert first.question == "main test 0?"
    assert fault(hub_folder, subset="main", split="tset") == (
        f"data.path: '{hub_folder}' cannot be loaded (ValueError: Unknown split \"tset\". Should be one of ['train', "
        "'test'].). Check data.subset and data.split; the folder must hold a data set as the Hugging Face hub has them"
    )
    assert "BuilderConfig 'x' not found. Available: ['main', 'other']" in fault(hub_folder, subset="x")


def test_the_hub_without_a_network(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "capo_ray.data", "check", "data=gsm8k"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    asked, told = done.stderr.splitlines()
    assert asked == "W reading openai/gsm8k from the Hugging Face hub"
    assert told.startswith("error: data.path: 'openai/gsm8k' cannot be loaded (ConnectionError: ")
    assert told.endswith(
        "Without a network: on a machine that has one, hf download --repo-type dataset openai/gsm8k --local-dir "
        "FOLDER, copy FOLDER here and pass data.path=FOLDER; or pass data.path=FILE.jsonl or FILE.parquet with the "
        "same columns"
    )


@pytest.mark.parametrize(
    ("name", "file", "count", "left_out"),
    [
        ("math", "math/math_train.jsonl.gz", 7498, 2),
        ("gsm8k", "gsm8k/train.jsonl.gz", 7473, 0),
        ("math500", "math/math500.jsonl", 500, 0),
        ("aime24", "math_eval/aime24.jsonl", 30, 0),
        ("amc23", "math_eval/amc23.jsonl", 40, 0),
        ("olympiadbench", "math_eval/olympiadbench.jsonl.gz", 675, 0),
        ("verl", "ood_luffy_verl_parquet/arc_challenge_test.parquet", 1172, 0),
    ],
)
def test_real_data_sets(test_data: Path, name: str, file: str, count: int, left_out: int) -> None:
    found = list(problems(of_conf(name, test_data / file)))
    assert not [problem for problem in found if isinstance(problem, DataError)]
    answered = [problem for problem in found if isinstance(problem, Problem) and problem.answer]
    assert (len(answered), len(found) - len(answered)) == (count, left_out)
    assert all(problem.question for problem in answered)


def test_the_layouts_of_sets_that_are_not_at_hand(tmp_path: Path) -> None:
    """DAPO-Math's and NuminaMath's columns, in rows of our own; a proof has no answer to reward."""
    dapo = {
        "prompt": "What is $2 + 3$?",
        "solution": "5",
        "data_source": "math_dapo",
        "source_prompt": [{"content": "Solve the following problem. What is $2 + 3$?", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "5", "style": "rule"},
        "extra_info": {"index": "a-b-c"},
    }
    numina = [
        {"source": "ours", "problem": problem, "solution": solution, "messages": [{"role": "user", "content": problem}]}
        for problem, solution in (("What is $2 + 3$?", "It is \\boxed{5}."), ("Prove it.", "It is clear."))
    ]
    for name, rows in (("dapo_math", [dapo]), ("numina_math_cot", numina)):
        path = write(tmp_path / f"{name}.jsonl", rows)
        (found,) = usable(of_conf(name, path))
        assert (found.question, found.answer) == ("What is $2 + 3$?", "5")
        assert bool(found.solution) == (name == "numina_math_cot")


def test_the_boxed_answers_of_math_are_its_answers(test_data: Path) -> None:
    path = test_data / "math" / "math_train.jsonl.gz"
    boxed = usable(of_conf("math", path))
    column = usable(of_conf("math", path).model_copy(update={"answer_field": "answer", "answer_boxed": False}))
    assert [(p.id, p.answer) for p in boxed] == [(p.id, p.answer) for p in column]


def test_every_data_set_of_conf_names_its_source() -> None:
    for name in sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml")):
        try:
            data = compose(["+experiment=llama1b_grpo", f"data={name}"]).data
        except ConfigError as error:
            assert name in ("verl", "plain") and "`path` must name a file or a data set" in str(error)
            continue
        made_here = str(data.path).startswith("./models/smollm2/")
        assert data.kind == "arithmetic" or made_here or str(data.path).count("/") == 1
