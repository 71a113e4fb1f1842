"""Where rows come from: jsonl (.gz too) and parquet files, folders of them, and data sets of the Hugging Face hub.

Libraries are imported where they are used. Leaves out what a row means (problem).
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capo_ray.config.blocks import Source
from capo_ray.data.problem import DataError, Problem, problem_of
from capo_ray.types import JsonDict

log = logging.getLogger(__name__)

Row = tuple[str, str, JsonDict | DataError]
"""(where it stands, a name for it, what it holds or why it cannot be read)."""


def problems(data: Source, *, limit: int | None = None) -> Iterator[Problem | DataError]:
    """The problems of a data set, row by row, with an error in place of each row that cannot be used.

    Raises DataError where the set as a whole cannot be read.
    """
    for number, (where, name, record) in enumerate(rows(data)):
        if number == limit:
            return
        if isinstance(record, DataError):
            yield record
            continue
        try:
            yield problem_of(record, where, name, data)
        except DataError as error:
            yield error


def rows(data: Source) -> Iterator[Row]:
    """Rows as they stand. Raises DataError where its `path` as a whole cannot be read."""
    assert data.path is not None
    path, option = Path(data.path).expanduser(), f"{data.place}.path"
    if path.is_dir() or _is_hub_id(data.path, path):
        yield from _data_set(data, path)
        return
    if not path.is_file():
        raise DataError(
            f"{option}: there is no file {path}; pass {option}=FILE.jsonl (or .jsonl.gz, .parquet), a folder "
            "or a Hugging Face id"
        )
    if path.suffix in (".json", ".csv", ".tsv", ".arrow"):
        raise DataError(
            f"{option}: {path} is of a kind that is not read; make it .jsonl (one JSON object a line), .jsonl.gz "
            "or .parquet"
        )
    found = False
    for row in _parquet(path, option) if path.suffix == ".parquet" else _jsonl(path, option):
        found = True
        yield row
    if not found:
        raise DataError(f"{option}: {path} is empty; it must hold one JSON object a line, or rows of parquet")


def is_here(data: Source) -> bool:
    """Whether its `path` is, or should be, a file or folder of this machine."""
    return not _is_hub_id(str(data.path), Path(str(data.path)).expanduser())


def _is_hub_id(name: str, path: Path) -> bool:
    """owner/name, and no file of a kind that we would read ourselves."""
    plain = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return plain and not path.exists() and not name.endswith((".jsonl", ".gz", ".parquet", ".json", ".csv"))


def _jsonl(path: Path, option: str) -> Iterator[Row]:
    for number, line in _lines(path, option):
        where = f"{path.name}, line {number}"
        yield where, f"{path.name}:{number}", _parsed(line, where)


def _parsed(line: bytes, where: str) -> JsonDict | DataError:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DataError(f"{where}: not UTF-8 text ({error.reason})")
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: not JSON ({error}); every line must be one JSON object")
    if not isinstance(record, dict):
        return DataError(f"{where}: a JSON {type(record).__name__}, must be an object with a field per column")
    return record


def _lines(path: Path, option: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{option}: {path} cannot be read after line {number}: {error}") from None


def _parquet(path: Path, option: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{option}: to read {path} pyarrow is needed: pip install pyarrow") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path.name}, row {number}", f"{path.name}:{number}", record
    except (ArrowException, OSError) as error:
        raise DataError(f"{option}: {path} cannot be read after row {number}: {error}") from None


def _data_set(data: Source, path: Path) -> Iterator[Row]:
    """A folder with a data set, or one of the hub."""
    name = str(path) if path.is_dir() else str(data.path)
    if path.is_dir() and re.search(r"[][*?]", name):
        raise DataError(
            f"{data.place}.path: the library datasets takes brackets, * and ? in {name!r} for a pattern and finds "
            "nothing; rename the folder, or name a jsonl or parquet file in it"
        )
    try:
        from datasets import disable_progress_bars, load_dataset
    except ImportError:
        raise DataError(
            f"{data.place}.path: to read {name} the library datasets is needed: pip install datasets, or name a "
            "jsonl file"
        ) from None
    disable_progress_bars()
    if not path.is_dir():
        log.warning("reading %s from the Hugging Face hub", name)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each attempt
    try:
        made = load_dataset(name, data.subset, split=data.split)
    except Exception as error:  # the library raises errors of many others
        raise DataError(_refusal(name, path.is_dir(), error, data.place)) from None
    for number, record in enumerate(made, start=1):
        yield f"{name}, row {number}", f"{path.name}:{number}", dict(record)


def _refusal(name: str, here: bool, error: Exception, place: str) -> str:
    reason = " ".join(str(error).split("\n")[0].split())[:300]
    said = f"{place}.path: {name!r} cannot be loaded ({type(error).__name__}: {reason})."
    choice = f"Check {place}.subset and {place}.split"
    if here:
        return f"{said} {choice}; the folder must hold a data set as the Hugging Face hub has them"
    return (
        f"{said} {choice}, or the network. Without a network: on a machine that has one, "
        f"hf download --repo-type dataset {name} --local-dir FOLDER, copy FOLDER here and pass {place}.path=FOLDER; "
        f"or pass {place}.path=FILE.jsonl or FILE.parquet with the same columns"
    )
