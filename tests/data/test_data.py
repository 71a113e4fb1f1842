"""Prompt sets: drawing without state, splits that do not meet, a message for everything that is wrong with a file."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.compose import validate
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.data.problem import DataError
from capo_ray.data.prompts import Prompts, load_prompts

RECORDS = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "solution": f"{n} + 1"} for n in range(10)]


def encode(question: str, system: str | None = None) -> tuple[int, ...]:
    return tuple(((system or "") + question).encode())


def config_of(seed: int = 0, prompts_per_step: int = 4, **data: Any) -> Config:
    given = {"max_prompt_tokens": 64, **data}
    return validate({
        "seed": seed,
        "steps": 1,
        "prompts_per_step": prompts_per_step,
        "responses_per_prompt": 2,
        "policy": {"path": "asset:tiny_policy"},
        "data": given,
        "rollout": {"max_response_tokens": 64},
        "algorithm": {"advantage": "grpo"},
        "trainer": {"learning_rate": 1e-3, "tokens_per_micro_batch": 4096},
        "cluster": {"device": "cpu"},
    })  # fmt: skip


def write(path: Path, records: list[Any]) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    text = "".join(f"{line}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> Prompts:
    return load_prompts(config_of(path=str(path), **options), encode)


def fault(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    return str(caught.value)


def questions(prompts: Prompts, step: int, attempt: int = 0) -> list[str]:
    return [prompt.question for prompt in prompts.for_step(step, attempt)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", RECORDS)


def test_a_step_is_a_function_of_seed_and_step(file: Path) -> None:
    first, again, other = load(file), load(file), load(file, seed=1)
    drawn = [first.for_step(step) for step in (3, 1, 7, 3)]
    assert drawn[0] == drawn[3] == again.for_step(3)
    assert [questions(first, s) for s in range(1, 6)] != [questions(other, s) for s in range(1, 6)]
    assert questions(first, 2) != questions(first, 2, attempt=1)
    assert questions(first, 2, attempt=1) == questions(again, 2, attempt=1)


def test_an_epoch_meets_every_problem_once(file: Path) -> None:
    prompts = load(file, prompts_per_step=5)
    for epoch in range(3):
        drawn = questions(prompts, 2 * epoch + 1) + questions(prompts, 2 * epoch + 2)
        assert sorted(drawn) == sorted(record["question"] for record in RECORDS)


def test_ids_differ_even_when_a_small_set_comes_twice_in_a_step(file: Path) -> None:
    ids = [prompt.id for prompt in load(file, prompts_per_step=25).for_step(1)]
    assert len(set(ids)) == 25
    assert ids[0].startswith("train.jsonl:")


def test_a_prompt_holds_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl.gz", [{"q": "What?", "a": "So it is 7\n#### 7 ", "s": "Because."}])
    names = {"question_field": "q", "answer_field": "a", "solution_field": "s", "answer_pattern": r"####\s*(.+)"}
    (prompt,) = load(path, prompts_per_step=1, **names).for_step(1)
    assert (prompt.question, prompt.answer, prompt.solution) == ("What?", "7", "Because.")
    assert prompt.token_ids == tuple(b"What?")


def test_limit_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "gaps.jsonl", ["", *RECORDS, "   "])
    assert len(load(path)) == 10
    assert len(load(path, limit=3)) == 3


def test_held_out_problems_are_a_fixed_draw_that_is_never_trained_on(file: Path) -> None:
    first, other = load(file, evaluation_prompts=4), load(file, evaluation_prompts=4, seed=5)
    assert [prompt.id for prompt in first.held_out] == [prompt.id for prompt in other.held_out]
    assert len(first.held_out) == 4 and len(first) == 6
    drawn = {question for step in range(1, 4) for question in questions(first, step)}
    assert not drawn & {prompt.question for prompt in first.held_out}


def test_held_out_problems_of_another_file_are_not_trained_on(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = write(file.with_name("test.jsonl"), [{"question": "What  is 3 + 1?", "answer": "4"}, *RECORDS[:1]])
    with caplog.at_level(logging.WARNING):
        prompts = load(file, evaluation={"path": str(other)}, evaluation_prompts=5)
    assert (len(prompts.held_out), len(prompts)) == (2, 8)
    assert f"2 problems of {file} are held out too: they are not trained on" in caplog.text
    assert fault(file, evaluation={"path": str(file)}, evaluation_prompts=10).startswith("every problem of ")
    with pytest.raises(ConfigError, match="`evaluation_prompts` is 0, so that none of them would be evaluated"):
        load(file, evaluation={"path": str(other)})


def test_held_out_problems_have_columns_of_their_own_where_they_are_named(file: Path) -> None:
    """What is not named is as in `data`; the resolved configuration says all of it, and composes to the same."""
    other = write(file.with_name("test.jsonl"), [{"question": "What is 8 + 8?", "gold": "it is \\boxed{16}"}])
    held_out = {"path": str(other), "answer_field": "gold", "answer_boxed": True}
    config = config_of(path=str(file), evaluation=held_out, evaluation_prompts=5, max_prompt_tokens=200)
    (prompt,) = load_prompts(config, encode).held_out
    assert (prompt.question, prompt.answer) == ("What is 8 + 8?", "16")
    assert type(config.data).model_validate(config.data.model_dump()) == config.data
    with pytest.raises(DataError, match=r"test.jsonl, line 1: no field 'answer'; .* set data.evaluation.answer_field"):
        load(file, evaluation={"path": str(other)}, evaluation_prompts=5)
    with pytest.raises(ConfigError, match=r"data.evaluation.answer_pattern: "):
        config_of(path=str(file), evaluation={"answer_pattern": 1})


def test_arithmetic_needs_no_file_and_holds_out() -> None:
    made = load_prompts(config_of(kind="arithmetic", limit=200, evaluation_prompts=50, max_prompt_tokens=200), encode)
    assert (len(made), len(made.held_out)) == (200, 50)
    trained = {question for step in range(1, 51) for question in questions(made, step)}
    assert not trained & {prompt.question for prompt in made.held_out}
    other = load_prompts(config_of(9, kind="arithmetic", limit=5, evaluation_prompts=50, max_prompt_tokens=200), encode)
    assert [prompt.question for prompt in other.held_out] == [prompt.question for prompt in made.held_out]
    assert other.for_step(1)[0].solution


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    kinds = "FILE (.jsonl, .json, .csv, .tsv, .parquet), a folder or a Hugging Face id"
    assert fault(path) == f"data.path: there is no file {path}; pass data.path={kinds}"
    there = write(tmp_path / "train.jsonl", RECORDS)
    message = fault(there, evaluation={"path": str(path)}, evaluation_prompts=2)
    assert message == f"data.evaluation.path: there is no file {path}; pass data.evaluation.path={kinds}"


def test_empty_file(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.jsonl", ["", " "])
    assert (
        fault(path)
        == f"data.path: {path} is empty; it must hold one JSON object a line, or rows of json, csv or parquet"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": ', "bad.jsonl, line 3: not JSON (Expecting value"),
        ("[1, 2]", "bad.jsonl, line 3: a JSON list, must be an object with a field per column"),
        (
            {"problem": "2?", "answer": "2"},
            "bad.jsonl, line 3: no field 'question'; there are answer, problem: set data.question_field",
        ),
        (
            {"question": "2?", "final": "2"},
            "bad.jsonl, line 3: no field 'answer'; there are final, question: set data.answer_field",
        ),
        (
            {"question": "2?", "answer": []},
            "bad.jsonl, line 3: field 'answer' is an empty list, must be a text or a number",
        ),
        (
            {"question": "2?", "answer": {"a": 1}},
            "bad.jsonl, line 3: field 'answer' is a dict, must be a text or a number",
        ),
        (
            {"question": True, "answer": "2"},
            "bad.jsonl, line 3: field 'question' is a bool, must be a text or a number",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [RECORDS[0], "", line])
    assert fault(path).startswith(message)


def test_no_solution_field(file: Path) -> None:
    message = "train.jsonl, line 1: no field 'proof'; there are answer, question, solution: set data.solution_field"
    assert fault(file, solution_field="proof") == message


def test_answer_pattern(file: Path) -> None:
    assert fault(file, answer_pattern="#### (.+)") == (
        "train.jsonl, line 1: data.answer_pattern '#### (.+)' does not match field 'answer', which ends in '1'"
    )


def test_unreadable_bytes(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(RECORDS[0]).encode() + b'\n{"question": "caf\xe9?", "answer": "1"}\n')
    assert fault(path) == "latin.jsonl, line 2: not UTF-8 text (invalid continuation byte)"
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(RECORDS).encode())[:-20])
    assert fault(packed).startswith(f"data.path: {packed} cannot be read after line 0: ")
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(b"{}")
    assert "Not a gzipped file" in fault(plain)


def test_empty_answers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "some.jsonl", [RECORDS[0], {"question": "?", "answer": " "}, RECORDS[1]])
    with caplog.at_level(logging.WARNING):
        assert len(load(path)) == 2
    assert "1 of 3 problems have an empty answer (first: some.jsonl:2): they are left out" in caplog.text
    path = write(tmp_path / "all.jsonl", [{"question": "?", "answer": ""}])
    assert fault(path).endswith("none is left; column 'answer' is empty in every row. Set data.answer_field")


def test_long_prompts_are_left_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = write(file.with_name("long.jsonl"), [RECORDS[0], {"question": "w" * 100, "answer": "1"}])
    with caplog.at_level(logging.WARNING):
        assert len(load(long)) == 1
    assert (
        "1 of 2 prompts are longer than data.max_prompt_tokens 64 (the longest has 100 tokens; the first is "
        "long.jsonl:2): they are left out"
    ) in caplog.text
    assert fault(file, max_prompt_tokens=3) == (
        "10 of 10 prompts are longer than data.max_prompt_tokens 3 (the longest has 14 tokens; the first is "
        "train.jsonl:1): none is left. Raise data.max_prompt_tokens"
    )


def test_too_many_held_out(file: Path) -> None:
    assert fault(file, evaluation_prompts=10).startswith(
        "data.evaluation_prompts 10 leaves none of the 10 problems of "
    )


def test_real_problems(test_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    gsm8k = load(
        test_data / "gsm8k" / "train.jsonl.gz",
        answer_pattern="#### (.+)",
        solution_field="answer",
        max_prompt_tokens=2000,
        evaluation={"path": str(test_data / "gsm8k" / "test.jsonl.gz")},
        evaluation_prompts=100,
    )
    assert (len(gsm8k), len(gsm8k.held_out)) == (7473, 100)
    with caplog.at_level(logging.WARNING):
        mathematics = load(
            test_data / "math" / "math_train.jsonl.gz",
            question_field="problem",
            solution_field="solution",
            max_prompt_tokens=4000,
        )
    assert len(mathematics) == 7496  # two prompts of more than 4,000 characters
    assert "2 of 7500 problems have an empty answer" in caplog.text
