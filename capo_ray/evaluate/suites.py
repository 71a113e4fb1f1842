"""What a benchmark is: where its problems are, how they are asked, and what kind of answer they have.

`conf/suite` has one file per benchmark and per group of them; a file of one's own is a suite too. Problems come from
the folder that `data_dir` names where it has them, else from where the benchmark says. Leaves out asking (responses)
and grading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from capo_ray.config.block import Block, setting
from capo_ray.config.blocks import Data
from capo_ray.config.compose import composed, conf_dir
from capo_ray.config.fault import ConfigError, line
from capo_ray.data.columns import named
from capo_ray.data.problem import DataError, Problem, problem_of, value_of
from capo_ray.data.prompts import arithmetic_problems
from capo_ray.data.read import rows
from capo_ray.evaluate.choices import DIGITS, LETTERS, render, shuffled
from capo_ray.seeds import seed_of
from capo_ray.types import JsonDict

CHOOSE = "{question}\n\n{options}\n\nPut the letter of the right option within \\boxed{}."
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_KEY = re.compile(r"\bdata\.(?=(?:path|subset|split|\w+_field|answer_\w+)\b)")
HELD_OUT = 1000
"""Problems of the tiny world that are asked where no count is given."""


class Options(Block):
    """Where the options of a question are."""

    field: str | tuple[str, ...] = setting("column with the list of them, or one column per option")
    labels_field: str | None = setting("column with the list of their labels; null: A, B, C ...", None)
    shuffle: bool = setting("in an order drawn by the seed, for data whose right option comes first", False)


class Benchmark(Block):
    """One set of problems. The gold answer of a choice is a label, the number of an option from 0, or its text."""

    data: Data = setting("where its problems are")
    answer: Literal["math", "choice", "arithmetic"] = setting(
        "what is compared: expressions, by math-verify; the label of an option; or numbers of the tiny world", "math"
    )
    options: Options | None = setting("null: the question holds its options itself (choice only)", None)
    prompt: str | None = setting("what is asked, with {question} and {options} put in; null: the usual", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A problem as it is asked; `options` are in the order that they are shown in."""

    problem: Problem
    options: tuple[str, ...] = ()


Suite = dict[str, Benchmark]


def find_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """The benchmarks of a suite of `conf/suite`, or of a file, by their names. `overrides` are `suite.NAME.KEY=VALUE`.

    Raises ConfigError.
    """
    path = Path(name).expanduser()
    if name.endswith(ENDINGS) or path.is_file():
        stem = next((path.name.removesuffix(ending) for ending in ENDINGS if path.name.endswith(ending)), path.stem)
        own = re.sub(r"\W", "_", stem)
        tree = _composed([f"+suite.{own}.data.path='{path}'", *(_added(given) for given in overrides)])
    else:
        there = sorted(file.stem for file in (conf_dir() / "suite").glob("*.yaml"))
        if name not in there:
            raise ConfigError(f"suite: there is no {name!r}; take a .jsonl or .parquet file, or: {', '.join(there)}")
        tree = _composed([f"+suite={name}", *(_added(given) for given in overrides)])
    suite = {}
    for key, plain in tree["suite"].items():
        try:
            suite[str(key)] = Benchmark.model_validate(plain)
        except ValidationError as error:
            fault = line(error.errors()[0], Benchmark, f"suite.{key}", see="docs/configuration.md")
            raise ConfigError(fault) from None
    return suite


def _composed(overrides: Sequence[str]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(composed(None, overrides), resolve=True)


def _added(override: str) -> str:
    return f"++{override.lstrip('+')}"


def questions(
    name: str, benchmark: Benchmark, *, seed: int, count: int | None = None, data_dir: Path | None = None
) -> list[Question]:
    """The first `count` problems of a benchmark. Raises DataError at the first row that cannot be used."""
    data = benchmark.data
    if data.kind == "arithmetic":
        made = arithmetic_problems(0, count or HELD_OUT, data, held_out=True)
        return [Question(problem=problem) for problem in made]
    here = _file_in(data_dir, name)
    if here is not None:
        data = data.model_copy(update={"path": str(here)})
    try:
        found = list(islice(_read(benchmark, data, seed), count))
    except DataError as error:
        said = f"{name}: {_KEY.sub(f'suite.{name}.data.', str(error))}"
        raise DataError(said if here else f"{said}\n{_hint(name, benchmark)}") from None
    names = [question.problem.id for question in found]
    if len(set(names)) < len(names):
        raise DataError(f"{name}: the id {max(names, key=names.count)!r} comes more than once; set data.id_field=null")
    return found


def _file_in(data_dir: Path | None, name: str) -> Path | None:
    """What `data_dir` has of a benchmark: a file or, as the hub has data sets, a folder. Raises DataError."""
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise DataError(f"data_dir: there is no folder {data_dir}")
    choices = (data_dir / f"{name}{ending}" for ending in (*ENDINGS, ""))
    return next((path for path in choices if path.exists()), None)


def _hint(name: str, benchmark: Benchmark) -> str:
    columns = [str(benchmark.data.question_field), str(benchmark.data.answer_field)]
    if benchmark.options:
        field = benchmark.options.field
        columns += [field] if isinstance(field, str) else field
        columns += [benchmark.options.labels_field] if benchmark.options.labels_field else []
    return (
        f"Or put {name}.jsonl or {name}.parquet, with the columns {', '.join(dict.fromkeys(columns))}, into a folder "
        "and pass data_dir=FOLDER"
    )


def _read(benchmark: Benchmark, data: Data, seed: int) -> Iterator[Question]:
    for where, row_name, record in rows(data):
        if isinstance(record, DataError):
            raise record
        data = named(data, record, where)
        options: tuple[str, ...] = ()
        if benchmark.options:
            record, options = _with_options(record, where, data, benchmark.options, seed)
        problem = problem_of(record, where, row_name, data)
        if not problem.question:
            raise DataError(f"{where}: the question is empty; set data.question_field")
        if not problem.answer:
            raise DataError(f"{where}: the gold answer is empty; set data.answer_field")
        if benchmark.answer == "choice" and problem.answer not in (*LETTERS, *DIGITS):
            raise DataError(f"{where}: the gold answer must be the letter or digit of an option, is {problem.answer!r}")
        yield Question(problem=_asked(problem, benchmark, options), options=options)


def _asked(problem: Problem, benchmark: Benchmark, options: Sequence[str]) -> Problem:
    prompt = benchmark.prompt or (CHOOSE if options else "{question}")
    text = prompt.replace("{options}", render(options)).replace("{question}", problem.question)
    return Problem(
        id=problem.id, question=text, answer=problem.answer, solution=problem.solution, system=problem.system
    )


def _with_options(
    record: JsonDict, where: str, data: Data, given: Options, seed: int
) -> tuple[JsonDict, tuple[str, ...]]:
    """The record with the letter of the right option as its answer, and the options as they are shown."""
    options = _options(record, where, given)
    gold = _gold(record, where, data, given, options)
    if given.shuffle:
        # The same wherever the data lies.
        asked = str(value_of(record, data.question_field, "data.question_field", where))
        options, gold = shuffled(options, gold, seed_of(seed, "options", asked))
    return {**record, str(data.answer_field): LETTERS[gold]}, tuple(options)


def _options(record: JsonDict, where: str, given: Options) -> list[str]:
    if isinstance(given.field, str):
        found = value_of(record, given.field, "data.options.field", where)
    else:
        found = [value_of(record, name, "data.options.field", where) for name in given.field]
    if not isinstance(found, list) or not 2 <= len(found) <= len(LETTERS):
        raise DataError(f"{where}: {given.field!r} must hold a list of 2 to {len(LETTERS)} options")
    return [str(option).strip() for option in found]


def _gold(record: JsonDict, where: str, data: Data, given: Options, options: Sequence[str]) -> int:
    """The number of the right option."""
    if data.answer_field in given.field and not isinstance(given.field, str):
        return given.field.index(data.answer_field)
    answer = value_of(record, data.answer_field, "data.answer_field", where)
    labels = list(LETTERS[: len(options)])
    if given.labels_field:
        labels = [str(label) for label in value_of(record, given.labels_field, "data.options.labels_field", where)]
    elif isinstance(answer, int) and 0 <= answer < len(options):
        return answer
    text = str(answer).strip()
    for names in (labels, options):
        if list(names).count(text) == 1:
            return list(names).index(text)
    raise DataError(f"{where}: the answer {text!r} is no label ({', '.join(labels)}) and no option")
