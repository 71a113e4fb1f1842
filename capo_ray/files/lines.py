"""Files of lines that grow while a program runs: what is appended is whole or not there.

Leaves out what the lines say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capo_ray.files.output import CannotWrite, first_of


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
