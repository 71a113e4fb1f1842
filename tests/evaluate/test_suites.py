"""Benchmarks as they are asked: counts and gold answers on real data, options, and what is said when data is wrong."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from capo_ray.config.compose import conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.data.problem import DataError
from capo_ray.evaluate.choices import verify_choice
from capo_ray.evaluate.suites import Question, find_suite, questions
from capo_ray.tasks.math import judge

FILES = {
    "math500": ("math/math500.jsonl", 500),
    "aime24": ("math_eval/aime24.jsonl", 30),
    "amc23": ("math_eval/amc23.jsonl", 40),
    "olympiadbench": ("math_eval/olympiadbench.jsonl.gz", 675),
    "gsm8k": ("gsm8k/test.jsonl.gz", 1319),
    "mmlu_pro": ("ood/mmlu_pro_test.jsonl.gz", 12032),
}


@pytest.fixture
def data_dir(test_data: Path, tmp_path: Path) -> Path:
    for name, (path, _) in FILES.items():
        (tmp_path / f"{name}{''.join(Path(path).suffixes)}").symlink_to(test_data / path)
    return tmp_path


def asked(name: str, data_dir: Path | None, **more: int) -> list[Question]:
    return questions(name, find_suite(name)[name], data_dir=data_dir, **{"seed": 0, **more})


@pytest.mark.parametrize("name", FILES)
def test_real_benchmarks_are_read(name: str, data_dir: Path) -> None:
    found = asked(name, data_dir)
    assert len(found) == FILES[name][1]
    assert all(question.problem.answer and question.problem.question for question in found)


@pytest.mark.parametrize(("name", "least"), [("math500", 500), ("aime24", 30), ("amc23", 40), ("gsm8k", 300)])
def test_gold_answers_are_right_of_themselves(name: str, least: int, data_dir: Path) -> None:
    golds = [question.problem.answer for question in asked(name, data_dir, count=500)][:least]
    wrong = [gold for gold in golds if judge(gold, f"So it is \\boxed{{{gold}}}.").answer != "correct"]
    assert (len(golds), wrong) == (least, [])


def test_options_are_shown_with_letters(data_dir: Path, test_data: Path) -> None:
    found = asked("mmlu_pro", data_dir)
    with gzip.open(test_data / FILES["mmlu_pro"][0], "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for question, record in zip(found, records, strict=True):
        assert question.problem.answer == record["answer"]
        assert question.options == tuple(option.strip() for option in record["options"])
    first = found[0].problem.question
    assert first.startswith("Typical advertising regulatory bodies") and "\n\n(A) Safe practices, Fear" in first
    assert first.endswith("\n\nPut the letter of the right option within \\boxed{}.")


def test_every_text_of_a_right_option_is_right(data_dir: Path) -> None:
    """But for options that are equal to another, or that are a letter themselves."""
    wrong = []
    for question in asked("mmlu_pro", data_dir, count=2000):
        right = question.options["ABCDEFGHIJ".index(question.problem.answer)]
        for said in (question.problem.answer, f"\\text{{({question.problem.answer}) {right}}}", right):
            found = verify_choice(question.problem.answer, f"\\boxed{{{said}}}", question.options)
            if found.answer != "correct":
                wrong.append((said, question.options))
    assert len(wrong) <= 60, wrong[:5]


def gpqa(folder: Path) -> Path:
    rows = [
        {"Question": f"which {n}?", "Correct Answer": "yes", **{f"Incorrect Answer {m}": f"no {m}" for m in (1, 2, 3)}}
        for n in range(40)
    ]
    (folder / "gpqa_diamond.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_options_of_gpqa_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    found = asked("gpqa_diamond", gpqa(tmp_path))
    places = Counter(question.problem.answer for question in found)
    assert set(places) == set("ABCD") and max(places.values()) < 20
    for question in found:
        assert question.options["ABCD".index(question.problem.answer)] == "yes"
    assert asked("gpqa_diamond", tmp_path) == found != asked("gpqa_diamond", tmp_path, seed=1)


def test_numbered_options_of_arc(tmp_path: Path) -> None:
    row = {"question": "?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    (tmp_path / "arc_c.jsonl").write_text(json.dumps(row) + "\n")
    (question,) = asked("arc_c", tmp_path)
    assert (question.problem.answer, question.options) == ("C", ("x", "y", "z"))


def test_verls_layout_has_its_options_in_the_question(test_data: Path) -> None:
    path = test_data / "ood_luffy_verl_parquet" / "arc_challenge_test.parquet"
    name = "arc_challenge_test"
    columns = {"data.question_field": "prompt", "data.answer_field": "reward_model.ground_truth", "answer": "choice"}
    suite = find_suite(str(path), [f"suite.{name}.{key}={value}" for key, value in columns.items()])
    found = questions(name, suite[name], seed=0)
    assert len(found) == 1172 and {question.problem.answer for question in found} == set("ABCD1234")
    first = found[0].problem
    assert first.system is not None and "\nC) Planetary days will become shorter." in first.question


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "my set.v1.jsonl"
    path.write_text('{"problem": "1+1?", "answer": 2}\n{"problem": "2+2?", "answer": 4}\n')
    suite = find_suite(
        str(path), ["suite.my_set_v1.data.question_field=problem", "suite.my_set_v1.prompt='Say {question}'"]
    )
    found = questions("my_set_v1", suite["my_set_v1"], seed=0)
    assert [(one.problem.question, one.problem.answer) for one in found] == [("Say 1+1?", "2"), ("Say 2+2?", "4")]


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "suite").glob("*.yaml")))
def test_every_suite_composes(name: str) -> None:
    assert find_suite(name)


def test_the_papers_suite() -> None:
    names = ["math500", "olympiadbench", "amc23", "aime24", "arc_c", "mmlu_pro", "gpqa_diamond"]
    assert list(find_suite("paper")) == names


def test_held_out_problems_of_the_tiny_world() -> None:
    found = asked("arithmetic", None, count=7)
    assert len(found) == 7 and found[0].problem.question.startswith("Start with ")


def broken(folder: Path, name: str, row: object) -> str:
    (folder / f"{name}.jsonl").write_text((row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(DataError) as caught:
        asked(name, folder)
    return str(caught.value)


def test_bad_rows(tmp_path: Path) -> None:
    good = {"question": "?", "options": ["x", "y"], "answer": "B"}
    assert "math500.jsonl, line 1: not JSON" in broken(tmp_path, "math500", "{")
    message = broken(tmp_path, "math500", {"question": "?", "answer": "1"})
    assert "no field 'problem'; there are answer, question: set suite.math500.data.question_field" in message
    assert "the gold answer is empty" in broken(tmp_path, "math500", {"problem": "?", "answer": " ", "solution": ""})
    assert "must hold a list of 2 to 26 options" in broken(tmp_path, "mmlu_pro", {**good, "options": "x"})
    assert "the answer 'C' is no label (A, B) and no option" in broken(tmp_path, "mmlu_pro", {**good, "answer": "C"})
    assert "no field 'options'" in broken(tmp_path, "mmlu_pro", {"question": "?", "answer": "B"})


def test_bad_suites(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite: there is no 'nope'; take a \.jsonl or \.parquet file, or: aime24, "):
        find_suite("nope")
    with pytest.raises(ConfigError, match=r"suite\.amc23\.colour: no such key; see docs/configuration.md"):
        find_suite("amc23", ["suite.amc23.colour=1"])
    with pytest.raises(DataError, match="data_dir: there is no folder"):
        asked("amc23", tmp_path / "none")
    with pytest.raises(DataError, match=r"aime24: suite\.aime24\.data\.path: there is no file .*none\.jsonl"):
        suite = find_suite("aime24", [f"suite.aime24.data.path={tmp_path / 'none.jsonl'}"])
        questions("aime24", suite["aime24"], seed=0)


def test_without_a_network_it_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for a quarter of a minute
    with pytest.raises(DataError) as caught:
        asked("aime25", None)
    assert "'math-ai/aime25' cannot be loaded" in str(caught.value)
    assert "put aime25.jsonl or aime25.parquet, with the columns problem, answer, into a folder" in str(caught.value)
