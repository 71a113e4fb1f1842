"""What a long program on the command line shares with the others, so that it can be stopped and gone on with.

A folder says whose results it holds, lines that were cut off are taken away, and a bar shows how far it is. Leaves out
what the results are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capo_ray.config.run import ConfigError
from capo_ray.files.output import CannotWrite, first_of


def claim(path: Path, mine: Mapping[str, Any], what: str) -> None:
    """Write down in `path` whose results its folder holds, or see that they are `mine`. Raises ConfigError."""
    folder = path.parent
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        pairs = {name: (theirs.get(name), value) for name, value in mine.items()}
        other = "; ".join(f"{name} {old!r}, now {new!r}" for name, (old, new) in pairs.items() if old != new)
        if other:
            raise ConfigError(f"out: {folder} holds {what} ({other}); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")


def cut_to_whole_lines(path: Path) -> None:
    """Take a last line that was cut off away from `path`, so that lines can be appended."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def appending(path: Path) -> Iterator[Callable[[str], None]]:
    """What appends a line to `path`, at once and whole: on a full disk what was there before stays. Raises CannotWrite,
    out of task groups too."""
    with path.open("ab", buffering=0) as file:

        def append(line: str) -> None:
            left, before = line.encode(), os.fstat(file.fileno()).st_size
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError as error:
                file.truncate(before)
                raise CannotWrite(f"{path} cannot be written: {error.strerror}") from error

        try:
            yield append
        except BaseExceptionGroup as group:
            if isinstance(first := first_of(group), CannotWrite):
                raise first from group
            raise


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; nothing where the output is piped."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
