"""Where rows come from: jsonl, json, csv (.gz too) and parquet files, folders, and data sets of the Hugging Face hub.

Libraries are imported where they are used; json and csv are read by Python's own, which leaves an answer as it is
spelled (007, 1e3) where others make a number of it. Leaves out what a row means (problem) and usual names (columns).
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from capo_ray.config.blocks import Source
from capo_ray.config.fault import limited
from capo_ray.data.columns import named
from capo_ray.data.problem import DataError, Problem, listed, problem_of
from capo_ray.types import JsonDict

log = logging.getLogger(__name__)

Row = tuple[str, str, JsonDict | DataError]
"""(where it stands, a name for it, what it holds or why it cannot be read)."""


def problems(data: Source, *, limit: int | None = None) -> Iterator[Problem | DataError]:
    """The problems of a data set, row by row, with an error in place of each row that cannot be used.

    Raises DataError where the set as a whole cannot be read.
    """
    found: Source | None = None
    for number, (where, name, record) in enumerate(rows(data)):
        if number == limit:
            return
        if isinstance(record, DataError):
            yield record
            continue
        found = found or named(data, record, where)
        try:
            yield problem_of(record, where, name, found)
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
            f"{option}: there is no file {path}; pass {option}=FILE ({', '.join(KINDS)}), a folder or a Hugging Face id"
        )
    read = KINDS.get(_kind(path), _jsonl)
    if _kind(path) in (".arrow", ".xlsx", ".xls", ".zip", ".yaml", ".pkl"):
        raise DataError(f"{option}: {path} is of a kind that is not read; make it one of {', '.join(KINDS)}")
    found = False
    for row in read(path, option):
        found = True
        yield row
    if not found:
        raise DataError(
            f"{option}: {path} is empty; it must hold one JSON object a line, or rows of json, csv or parquet"
        )


def _kind(path: Path) -> str:
    """Its ending, in small letters and without that of its packing."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def is_here(data: Source) -> bool:
    """Whether its `path` is, or should be, a file or folder of this machine."""
    return not _is_hub_id(str(data.path), Path(str(data.path)).expanduser())


def _is_hub_id(name: str, path: Path) -> bool:
    """owner/name, and no file of a kind that we would read ourselves."""
    plain = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return plain and not path.exists() and not name.lower().endswith((*KINDS, ".gz"))


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
        return _no_object(record, where)
    return record


def _lines(path: Path, option: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; without a byte order mark before the first."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{option}: {path} cannot be read after line {number}: {limited(str(error))}") from None


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _text_of(path: Path, option: str) -> str:
    try:
        with _opened(path) as file:
            return str(file.read().decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{option}: {path} cannot be read: {limited(str(error))}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{option}: {path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _json(path: Path, option: str) -> Iterator[Row]:
    """A list of objects, or an object with one such list in it; one object a line does as well."""
    try:
        whole = json.loads(_text_of(path, option))
    except (ValueError, RecursionError) as error:
        if not str(error).startswith("Extra data"):
            raise DataError(f"{option}: {path} is not JSON ({error})") from None
        yield from _jsonl(path, option)
        return
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else [whole]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise DataError(f"{option}: {path} must hold a list of objects, or one object with one such list in it")
    for number, record in enumerate(lists[0], start=1):
        where = f"{path.name}, row {number}"
        yield where, f"{path.name}:{number}", record if isinstance(record, dict) else _no_object(record, where)


def _no_object(record: Any, where: str) -> DataError:
    return DataError(f"{where}: a JSON {type(record).__name__}, must be an object with a field per column")


def _csv(path: Path, option: str) -> Iterator[Row]:
    """Cells as they are spelled, an empty one as null; between them a tab in .tsv, else what the first line has most of
    comma, semicolon and tab."""
    text = _text_of(path, option)
    first = text.partition("\n")[0]
    delimiter = "\t" if _kind(path) == ".tsv" else max(",;\t", key=first.count)
    csv.field_size_limit(sys.maxsize)
    table = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        header = [name.strip() for name in next(table, [])]
        if len(set(header)) < len(header):
            raise DataError(f"{option}: {path} has columns of one name in its first line: {listed(header)}")
        for number, cells in enumerate(table, start=2):
            if any(cell.strip() for cell in cells):
                where = f"{path.name}, row {number}"
                yield where, f"{path.name}:{number}", _record(header, cells, where)
    except csv.Error as error:
        raise DataError(f"{option}: {path} cannot be read after row {number}: {limited(str(error))}") from None


def _record(header: Sequence[str], cells: Sequence[str], where: str) -> JsonDict | DataError:
    if len(cells) != len(header):
        return DataError(
            f"{where}: {len(cells)} cells, and the first line names {len(header)} columns; text with commas or line "
            "breaks in it must stand in double quotes"
        )
    return {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}


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
                for record in _plain_rows(batch, path.name, number):
                    number += 1
                    yield f"{path.name}, row {number}", f"{path.name}:{number}", record
    except (ArrowException, OSError, *UNPRINTABLE) as error:
        raise DataError(f"{option}: {path} cannot be read after row {number}: {limited(str(error))}") from None


UNPRINTABLE = (UnicodeDecodeError, OverflowError, ValueError)
"""What pyarrow raises for bytes that are no UTF-8 in a text, and for times that Python has no date for."""


def _plain_rows(batch: Any, name: str, before: int) -> Iterator[JsonDict | DataError]:
    """The rows of a batch; where some value of it cannot be had in Python, row by row. `before`: rows before it."""
    try:
        yield from batch.to_pylist()
        return
    except UNPRINTABLE:
        pass
    for place in range(batch.num_rows):
        record: JsonDict | DataError = {}
        for column in batch.schema.names:
            try:
                value = batch.column(column)[place].as_py()
            except UNPRINTABLE as error:
                record = DataError(
                    f"{name}, row {before + place + 1}: field {column!r} cannot be read: {limited(str(error))}"
                )
                break
            record = {**record, column: value} if isinstance(record, dict) else record
        yield record


KINDS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""Ending -> what reads such a file; with any other it is read as jsonl."""


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
    number = 0
    try:
        for number, record in enumerate(made, start=1):
            yield f"{name}, row {number}", f"{path.name}:{number}", dict(record)
    except UNPRINTABLE as error:
        raise DataError(
            f"{data.place}.path: {name!r} cannot be read after row {number}: {limited(str(error))}"
        ) from None


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
