"""`data=plain data.path=FILE`: files as people have them, by one setting; and what a hostile one holds, row by row."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.blocks import Data
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.data.__main__ import main as check
from capo_ray.data.epochs import in_steps
from capo_ray.data.problem import DataError, Problem
from capo_ray.data.prompts import usable

ROWS = [{"q": f"{n} + 1?", "a": str(n + 1), "s": f"{n} + 1 is {n + 1}."} for n in range(4)]


def plain(path: Path, **more: Any) -> list[Problem]:
    found = compose(["+experiment=tiny_cpu", "data=plain", f"data.path='{path}'"]).data
    return usable(found.model_copy(update=more))


def fault(path: Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        plain(path, **more)
    return str(caught.value)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """In the layout that the ending says."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- one setting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet", ".JSONL"])
@pytest.mark.parametrize(
    ("question", "answer", "solution"),
    [
        ("question", "answer", "solution"),
        ("problem", "ground_truth", None),
        ("prompt", "final_answer", "reasoning"),
        ("input", "target", None),
        ("Query", "LABEL", "explanation"),
        ("instruction", "output", None),
    ],
)
def test_a_file_is_used_by_one_setting(
    tmp_path: Path, ending: str, question: str, answer: str, solution: str | None
) -> None:
    rows = [{question: row["q"], answer: row["a"], **({solution: row["s"]} if solution else {})} for row in ROWS]
    found = plain(write(tmp_path / f"x{ending}", rows))
    assert [(one.question, one.answer, one.solution) for one in found] == [
        (row["q"], row["a"], row["s"] if solution else "") for row in ROWS
    ]


@pytest.mark.parametrize(
    ("column", "text"), [("solution", "So it is \\boxed{7}."), ("answer", "4 + 3 is 7.\n#### 7"), ("solution", "7")]
)
def test_a_worked_solution_says_its_answer(tmp_path: Path, column: str, text: str) -> None:
    (found,) = plain(write(tmp_path / "x.jsonl", [{"question": "4 + 3?", column: text}]))
    assert (found.answer, found.solution) == ("7", text if len(text) > 1 else "")


def test_verls_layout_is_found_too(tmp_path: Path) -> None:
    row = {"data_source": "x", "prompt": [{"role": "user", "content": "4 + 3?"}], "reward_model": {"ground_truth": "7"}}
    (found,) = plain(write(tmp_path / "x.parquet", [row]))
    assert (found.question, found.answer) == ("4 + 3?", "7")


def test_other_shapes_of_json(tmp_path: Path) -> None:
    rows = [{"question": "1?", "answer": 1}]
    for text in (
        json.dumps({"data": rows}),
        json.dumps(rows[0]) + "\n" + json.dumps(rows[0]),
        "\ufeff" + json.dumps(rows),
    ):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert plain(tmp_path / "x.json")[0].answer == "1"
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert "must hold a list of objects, or one object with one such list in it" in fault(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('[{"question": "1?", "answer": 1}, 7]')
    assert fault(tmp_path / "x.json") == "x.json, row 2: a JSON int, must be an object with a field per column"


def test_answers_of_csv_are_as_they_are_spelled(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\ufeffquestion;answer\n1?;007\n2?;1e3\n3?;\n\n", encoding="utf-8")
    assert [one.answer for one in plain(tmp_path / "x.csv")] == ["007", "1e3"]
    (tmp_path / "x.csv").write_text("question,answer\na, b,1\n")
    assert fault(tmp_path / "x.csv").startswith("x.csv, row 2: 3 cells, and the first line names 2 columns; text with")
    (tmp_path / "x.csv").write_text('question,answer\n"a,1\n')
    assert "cannot be read after row 1: unexpected end of data" in fault(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("question,question\na,1\n")
    assert "has columns of one name in its first line: question, question" in fault(tmp_path / "x.csv")


def test_what_could_be_either_is_refused_with_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "prompt": "x", "answer": 1}])
    assert fault(path) == (
        "x.jsonl, line 1: question, prompt could each be the question; there are answer, prompt, question: set "
        "data.question_field"
    )
    assert plain(path, question_field="question")[0].question == "1?"
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "final": 1}])
    assert fault(path) == (
        "x.jsonl, line 1: no column has a usual name for the answer; there are final, question: set data.answer_field"
    )
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "solution": "One line.\nAnd another."}])
    assert "field 'solution' is a worked solution without a marked answer" in fault(path)


# ---- hostile rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": [{"role": ["x"], "content": "1?"}], "answer": 1},
            "line 2: field 'question' is a list, must be a text or messages with a role and a content",
        ),
        (
            {"question": [{"role": 5, "content": "1?"}], "answer": 1},
            "line 2: field 'question' is a list, must be a text",
        ),
        ({"question": "\ud800", "answer": 1}, "line 2: field 'question' holds \\ud800, half of a character"),
        ({"question": "1?", "answer": "7\udfff"}, "line 2: field 'answer' holds \\udfff, half of a character"),
        ({"question": [{"role": "user", "content": "\ud800"}], "answer": 1}, "line 2: field 'question' holds \\ud800"),
        ({"question": {"a": 1}, "answer": 1}, "line 2: field 'question' is a dict, must be a text or a number"),
        ({"question": "1?", "answer": [None]}, "line 2: field 'answer' is a null, must be a text or a number"),
        ({"question": "1?", "answer": 1e400}, "line 2: field 'answer' is inf, which no answer can equal"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "answer": 1}, row])
    assert fault(path).startswith(f"x.jsonl, {message}")


@pytest.mark.parametrize("question", ["", " \n\t", None, float("nan"), [{"role": "user", "content": " "}]])
def test_rows_that_ask_nothing_are_left_out(tmp_path: Path, question: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "answer": 1}, {"question": question, "answer": 2}])
    with caplog.at_level(logging.WARNING):
        assert len(plain(path)) == 1
    assert "1 of 2 problems have an empty question (first: x.jsonl:2): they are left out" in caplog.text
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "answer": "1"}] * 0 + [{"question": question, "answer": 2}])
    assert fault(path).endswith("1 of 1 problems have an empty question (first: x.jsonl:1): none is left; Set "
                                "data.question_field")  # fmt: skip


def test_nulls_nans_and_marks_of_byte_order(tmp_path: Path) -> None:
    lines = ['{"question": "1?", "answer": NaN, "solution": null}', '{"question": "2?", "answer": 2, "solution": null}']
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    (found,) = plain(tmp_path / "x.jsonl")
    assert (found.answer, found.solution) == ("2", "")


def test_brackets_in_a_files_name(tmp_path: Path) -> None:
    assert len(plain(write(tmp_path / "x[1]*.jsonl", [{"question": "1?", "answer": 1}]))) == 1


def test_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    """Its other rows are read; the one with bytes that are no text, or a time without a date, is named."""
    import pyarrow
    from pyarrow.parquet import write_table

    raw = pyarrow.array([b"1?", b"caf\xe9?", b"3?"], type=pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    times = pyarrow.array([0, 1, 10**15], type=pyarrow.timestamp("s"))
    write_table(pyarrow.table({"question": text, "answer": ["1", "2", "3"], "when": times}), tmp_path / "x.parquet")
    assert fault(tmp_path / "x.parquet").startswith("x.parquet, row 2: field 'question' cannot be read: 'utf-8' codec")
    write_table(
        pyarrow.table({"question": ["1?"] * 3, "answer": ["1", "2", "3"], "when": times}), tmp_path / "x.parquet"
    )
    assert fault(tmp_path / "x.parquet").startswith("x.parquet, row 3: field 'when' cannot be read: ")
    write_table(pyarrow.table({"question": ["1?"], "answer": [datetime(2026, 1, 1)]}), tmp_path / "x.parquet")
    assert fault(tmp_path / "x.parquet") == "x.parquet, row 1: field 'answer' is a datetime, must be a text or a number"


def test_names_and_depths_that_nobody_reads(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    path = write(tmp_path / "x.jsonl", [{"x\ny": deep, **{f"c{n}": 1 for n in range(5000)}}])
    said = fault(path)
    assert "\n" not in said and len(said) < 500 and "(5001 of them)" in said


# ---- causes ----------------------------------------------------------------------------------------------------------


def test_the_cause_of_empty_answers_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": f"{n}?", "ground_truth": "1"} for n in range(2)])
    data = Data(path=str(path), question_field="problem", answer_field="ground_truth", answer_boxed=True)
    with pytest.raises(DataError) as caught:
        usable(data)
    cause = (
        "data.answer_boxed=true takes the last \\boxed{} of column 'ground_truth', and no row has one: set it to false"
    )
    assert str(caught.value) == f"2 of 2 problems have an empty answer (first: a.jsonl:1): none is left; {cause}"
    given = [
        f"data.path={path}",
        "data=math",
        "data.answer_field=ground_truth",
        "data.solution_field=null",
        "against=[]",
    ]
    assert check(["check", *given]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "rows 2, usable 0 left out 2 without an answer (first: a.jsonl:1) REFUSED nothing can be used: " in said
    assert cause in said


@pytest.mark.parametrize("out", [".", "none/x.json"])
def test_where_figures_go_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check(["check", "data=plain", "data.path=none.jsonl", f"out={out}"]) == 2
    assert capsys.readouterr().err.startswith("error: out: ")


# ---- epochs ----------------------------------------------------------------------------------------------------------


def test_epochs_in_place_of_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"question": f"{n}?", "answer": n} for n in range(50)])
    given = ["+experiment=tiny_cpu", "data=plain", f"data.path={path}", "epochs=2"]
    config = in_steps(compose(given))
    assert (config.steps, config.epochs) == (7, None)  # 100 prompts of 16 a step
    assert in_steps(compose([*given, "data.evaluation_prompts=10"])).steps == 5
    assert in_steps(config) == config
    with pytest.raises(ConfigError, match="steps, epochs: both say how long the run is; give one of the two"):
        compose([*given, "steps=3"])
    assert compose(["+experiment=tiny_cpu", "epochs=1"]).steps == 20  # until they are counted
