"""Random files of problems, whole and damaged: prompts, or the project's own error in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from fuzz.mutate import TIMES

from capo_ray.config.blocks import Data
from capo_ray.data.check import sort_rows
from capo_ray.data.problem import DataError
from capo_ray.data.prompts import usable
from capo_ray.data.read import problems

NAMES = (
    "question",
    "problem",
    "prompt",
    "answer",
    "solution",
    "final_answer",
    "label",
    "x",
    "Question",
    "a.b",
    "é",
    "",
    "id",
)
CELLS: list[Any] = [
    None, True, False, 0, 7, -1, 10**40, 1.5, float("nan"), float("inf"), "", " ", "7", "007", "1/2", "\\boxed{7}",
    "#### 7", "#### ", "What is 2+2?", "nan", "null", "N/A", "\ud800", "\x00", "\ufeff", "a\nb", "é" * 200,
    "x" * 10_000, "\\boxed{" * 300, "{" * 500, "\u202e\u0000", [], [1], ["a", None], [[["a"]]], {}, {"a": 1},
    {"b": {"c": "d"}}, {"ground_truth": "7"}, [{"role": "user", "content": "2?"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": " "}], [{"role": ["x"], "content": "2?"}],
    [{"role": 5, "content": None}], [{"content": "2?"}], ["a", {"role": "user"}],
]  # fmt: skip
DEEP = '{"question": ' + "[" * 2000 + "]" * 2000 + "}"


def rows_of(chance: random.Random) -> list[dict[str, Any]]:
    names = chance.sample(NAMES, chance.randint(1, 5))
    usual = ["question", "answer"] if chance.random() < 0.6 else []
    return [
        {name: chance.choice(CELLS) for name in [*usual, *names] if chance.random() < 0.95}
        | ({"question": "2?", "answer": "2"} if chance.random() < 0.4 else {})
        for _ in range(chance.randint(0, 6))
    ]


def written(rows: list[dict[str, Any]], ending: str, chance: random.Random) -> bytes:
    if ending == ".parquet":
        return parquet(rows, chance)
    if ending in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        names = sorted({name for row in rows for name in row})
        table = csv.writer(text, delimiter="\t" if ending == ".tsv" else chance.choice(",;"))
        table.writerow(names)
        table.writerows([str(row.get(name, "")) for name in names] for row in rows)
        return text.getvalue().encode("utf-8", "surrogatepass")
    if ending == ".json":
        whole: Any = chance.choice((rows, {"data": rows}, {"a": rows, "b": rows}, {"data": 1}, rows[:1], 7))
        return json.dumps(whole).encode()
    lines = [json.dumps(row, ensure_ascii=chance.random() < 0.5) for row in rows]
    lines += chance.sample(["", "{", "[1]", "7", "null", '{"question": 1e999}', DEEP], chance.randint(0, 2))
    chance.shuffle(lines)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def parquet(rows: list[dict[str, Any]], chance: random.Random) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    made = io.BytesIO()
    number = len(rows)
    columns: dict[str, Any] = {}
    for name in ("question", "answer", "when"):
        raw = pyarrow.array(
            [chance.choice((b"7", b"caf\xe9", b"\xff", b"", None)) for _ in rows], type=pyarrow.binary()
        )
        columns[name] = chance.choice((
            pyarrow.array(["2?"] * number, type=pyarrow.string()),
            pyarrow.array([chance.choice((0, 10**15, None)) for _ in rows], type=pyarrow.timestamp("s")),
            pyarrow.array([chance.choice((1.5, float("nan"), None)) for _ in rows], type=pyarrow.float64()),
            raw,
            pyarrow.Array.from_buffers(pyarrow.string(), number, raw.buffers()) if number else raw,
            pyarrow.array([[{"role": "user", "content": "2?"}]] * number),
        ))  # fmt: skip
    write_table(pyarrow.table(columns), made)
    return made.getvalue()


def damaged(content: bytes, chance: random.Random) -> bytes:
    kind = chance.random()
    if not content or kind < 0.5:
        return content
    at = chance.randrange(len(content))
    if kind < 0.65:
        return content[:at]
    if kind < 0.8:
        return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    return chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\n\n", b"PAR1", b"\x1f\x8b")) + content


def test_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    chance, number, made = random.Random(20261126), 700 * TIMES, 0
    endings = (".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".jsonl.gz", ".json.gz", ".csv.gz")
    for turn in range(number):
        ending = chance.choice(endings)
        content = written(rows_of(chance), ending.removesuffix(".gz"), chance)
        content = damaged(gzip.compress(content) if ending.endswith(".gz") else content, chance)
        path = tmp_path / f"{turn % 10}{chance.choice(('', '[1]', ' é'))}{ending}"
        path.write_bytes(content)
        options: dict[str, Any] = chance.choice((
            {"question_field": None, "answer_field": None}, {}, {"answer_boxed": True}, {"answer_pattern": "(.*)"},
            {"question_field": "problem", "solution_field": "solution"}, {"id_field": "x"}, {"question_field": "a.b"},
        ))  # fmt: skip
        made += tried(Data(path=str(path), **options), turn)
    print(f"\n{number} files, of which {made} gave problems")
    assert 0 < made < number


def tried(data: Data, turn: int) -> bool:
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sort_rows(problems(data))
            for problem in usable(data):
                assert problem.question.strip() and problem.answer.encode() and problem.solution.encode() is not None
        return True
    except DataError as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < 1500, said[:500]
        return False
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {str(error)[:300]} of try {turn}, {data.path}")
    finally:
        assert time.process_time() - start < 10, turn
