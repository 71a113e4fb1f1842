"""`python -m capo_ray.data check`: what it counts, what it shows, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from capo_ray.data.__main__ import main
from capo_ray.data.check import duplicates_of, lengths_of, overlap, sort_rows, too_long
from capo_ray.data.problem import DataError, Problem

COLUMNS = ["data.question_field=question", "data.answer_field=answer", "data.subset=null"]


def problem(name: str, question: str, answer: str = "1") -> Problem:
    return Problem(id=name, question=question, answer=answer)


def write(path: Path, records: list[Any]) -> Path:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["check", *arguments])
    printed = capsys.readouterr()
    return code, printed.out or printed.err


# -- figures


def test_rows_are_sorted_by_what_a_run_makes_of_them() -> None:
    rows: list[Problem | DataError] = [
        problem("a", "q"),
        DataError("f, line 2: no field 'x'; there are y: set data.answer_field"),
        DataError("f, line 3: no field 'x'; there are z: set data.answer_field"),
        problem("a", "r"),
        problem("b", "s", ""),
    ]
    found = sort_rows(rows)
    assert found.num_rows == 5 and [one.id for one in found.problems] == ["a"] and found.unanswered == ["b"]
    assert dict(found.refused) == {
        "no field 'x'": [
            "f, line 2: no field 'x'; there are y: set data.answer_field",
            "f, line 3: no field 'x'; there are z: set data.answer_field",
        ],
        "an id that an earlier row has": ["a: an id that an earlier row has; set data.id_field=null"],
    }


def test_lengths() -> None:
    measured = lengths_of(list(range(1, 201)))
    assert measured is not None
    assert (measured.least, measured.most, measured.mean) == (1, 200, 100.5)
    assert measured.percentiles == {50: 100, 90: 180, 99: 198}
    one = lengths_of([7])
    assert one is not None and one.percentiles == {50: 7, 90: 7, 99: 7}
    assert lengths_of([]) is None


def test_duplicates_and_overlaps() -> None:
    found = [problem("a", "What is $x$?"), problem("b", "what is x", "2"), problem("c", "Y?"), problem("d", "y")]
    repeated = duplicates_of(found)
    assert (repeated.repeated, repeated.questions, repeated.contradictions) == (2, 2, (("a", "b"),))
    met = overlap(found, "test", ["Y ?", "Z?"])
    assert (met.size, met.met) == (2, ("c", "d"))


def test_prompts_that_are_too_long() -> None:
    found = [problem("a", "12"), problem("b", "12345"), problem("c", "1234")]
    assert too_long(found, [2, 5, 4], 3) == [("b", 5), ("c", 4)]


# -- the program


def test_a_sound_set(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MATH, with one of its questions planted in an evaluation set."""
    planted = write(
        tmp_path / "planted.jsonl", [{"input": "If $A=2+i$, $O=-4$, $P=-i$, and $S=2+4i$, find $A-O+P+S$."}]
    )
    out = tmp_path / "figures.json"
    code, text = check(
        capsys,
        "data=math",
        f"data.path={test_data}/math/math_train.jsonl.gz",
        "policy.path=asset:tiny_policy",
        f"against=[{test_data}/math/math500.jsonl, {planted}]",
        "data.max_prompt_tokens=2000",
        "show=1",
        f"out={out}",
    )
    assert code == 0
    assert "rows       7,500, usable 7,498\n" in text
    assert "left out   2 without an answer (first: math_train.jsonl.gz:5530)" in text
    assert "repeated   3 problems ask what an earlier one asks" in text
    assert "(math_train.jsonl.gz:16 and math_train.jsonl.gz:1619)" in text
    assert "  math500.jsonl          no problem asks one of its 500 questions" in text
    assert "  planted.jsonl          1 problems ask one of its 1 questions (math_train.jsonl.gz:2)" in text
    assert "example math_train.jsonl.gz:1, gold answer '0'\n  | <|im_start|>" in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("  | "))
    made = json.loads(out.read_text())
    assert made["rows"] == 7500 and made["unit"] == "tokens" and made["lengths"]["prompt"]["most"] > 2000
    assert f"left out   {made['too_long']['rows']:,} of more than data.max_prompt_tokens 2,000 (most: " in text


def test_rows_that_a_run_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": "a", "answer": "1"},
        "{",
        {"question": "b"},
        {"question": "c"},
        {"question": "d", "answer": " "},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    code, text = check(capsys, f"data.path={path}", *COLUMNS, "against=[]")
    assert code == 1
    assert "rows       5, usable 1\n" in text
    assert "REFUSED    1 rows, the first is x.jsonl, line 2: not JSON (Expecting property name" in text
    assert (
        "REFUSED    2 rows, the first is x.jsonl, line 3: no field 'answer'; there are question: set\n"
        "           data.answer_field\n"
    ) in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("  | "))
    assert "left out   1 without an answer (first: x.jsonl:5)" in text
    assert "too long   not known (data.max_prompt_tokens 1,024): the policy's tokenizer is not on this\n" in text
    assert "length in characters" in text and "overlap    no evaluation set was named" in text


def test_a_set_of_which_nothing_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}])
    code, text = check(capsys, f"data.path={path}", *COLUMNS, "against=[]")
    assert code == 1 and text.splitlines() == [
        f"data       {path}",
        "rows       2, usable 0",
        "REFUSED    2 rows, the first is x.jsonl, line 1: no field 'question'; there are text: set",
        "           data.question_field",
        "REFUSED    nothing can be used: every row is refused or asks nothing",
    ]


def test_suites_are_compared_with_where_the_hub_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is not: each of the paper's sets that has to come from it is named, and the check goes on."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = write(tmp_path / "x.jsonl", [{"question": "a", "answer": "1"}])
    code, text = check(capsys, f"data.path={path}", *COLUMNS)
    assert code == 0
    for name in ("math500", "olympiadbench", "amc23", "aime24"):
        assert f"  {name:<22} not looked at: no way to the Hugging Face hub; name a file of it" in text


def test_held_out_problems_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "What is 1?", "answer": "1"}, {"question": "What is 2?", "answer": "2"}]
    path, other = write(tmp_path / "x.jsonl", rows), write(tmp_path / "y.jsonl", rows[1:])
    code, text = check(capsys, f"data.path={path}", *COLUMNS, f"data.evaluation={{path:{other}}}", "against=[]")
    assert code == 0 and "  held out               1 problems ask one of its 1 questions (x.jsonl:2)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data.path={x}", "against=[nothing]"],
            "against: there is no file nothing, and no such suite in conf/suite (aime",
        ),
        (
            ["+experiment=tiny_cpu"],
            "data.kind: arithmetic is made up, there is nothing to check; name a set with data=",
        ),
        (["data.path={x}", "show=many"], "show: must be a whole number, got 'many'"),
        (["data.path=nothing.jsonl"], "data.path: there is no file nothing.jsonl; pass data.path=FILE (.jsonl, "),
        (["data.pth=x"], "data.pth: no such key; did you mean data.path?"),
        (["data.path={x}", "policy.tokenizer={folder}"], "policy.tokenizer: no tokenizer.json in"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    x = write(tmp_path / "x.jsonl", [{"question": "a", "answer": "1"}])
    code, text = check(capsys, *COLUMNS, *(argument.format(x=x, folder=tmp_path) for argument in arguments))
    assert code == 2 and text.startswith(f"error: {message}")


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "usage: python -m capo_ray.data check" in capsys.readouterr().out
    assert main(["chek"]) == 2
    assert capsys.readouterr().err == "error: 'chek' is no command; there is: python -m capo_ray.data check\n"


# -- gold answers


def test_cells_without_an_answer_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ["null", "NaN", '"nan"', '"N/A"', '""', '"7"']
    lines = [f'{{"question": "{n} + 1?", "answer": {answer}}}' for n, answer in enumerate(answers)]
    path = write(tmp_path / "x.jsonl", lines)
    code, text = check(capsys, f"data.path={path}", *COLUMNS, "against=[]")
    assert code == 0 and "rows       6, usable 1\n" in text
    assert "left out   5 without an answer (first: x.jsonl:1)" in text


def test_an_infinite_answer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", ['{"question": "1?", "answer": -Infinity}', '{"question": "2?", "answer": 3}'])
    code, text = check(capsys, f"data.path={path}", *COLUMNS, "against=[]")
    assert code == 1 and "x.jsonl, line 1: field 'answer' is -inf, which no answer can equal" in " ".join(text.split())


def test_golds_are_graded_against_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ["3", "\\text{odd}", "see the solution", "\\foo\\bar{x}", "{x"]
    path = write(tmp_path / "x.jsonl", [{"question": f"{n}?", "answer": answer} for n, answer in enumerate(answers)])
    code, text = check(capsys, f"data.path={path}", *COLUMNS, "against=[]")
    said = " ".join(text.split())
    assert code == 0
    assert "grading 80.0% equal to themselves" in said and "(of 5 different ones)" in said
    assert "some gold answers do not equal themselves, so nobody is paid for them (x.jsonl:5: '{x')" in said
    assert "1 rows have a gold answer that looks like none (x.jsonl:3: 'see the solution')" in said
    assert "2 of them are compared as they are spelled, being of no kind of docs/equality.md (x.jsonl:4" in said
    assert "right answers are missed where they are spelled otherwise" in said
