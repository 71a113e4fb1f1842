"""Where programs write what was asked for: a file that is whole or as it was, and standard output as far as it goes.

A device, a pipe and what a link leads to are written through; they are never put aside for a file. Full disks, closed
pipes and places that take nothing are one line. Leaves out the directories of runs (see `run_dir`).
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from capo_ray.files.durable import move_into_place

PLACES = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
        errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO,
    }
)  # fmt: skip
"""Of faults of a place, not of a program."""


class CannotWrite(Exception):
    """An output cannot be written, or no further; the message says which and why."""


class BadOutput(CannotWrite):
    """It cannot be written at all, which is known before anything is done for it."""


def check_output(path: Path, name: str = "out") -> None:
    """Raises BadOutput, which begins with `name`, where no file can be written to `path`."""
    with _told(path, name, BadOutput):
        target = _target(path)
        if not target.parent.exists():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent}")
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_written_through(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        partial = _partial(target)
        partial.touch()
        partial.unlink()


@contextmanager
def output_file(path: Path, name: str = "out") -> Iterator[TextIO]:
    """What takes the text of `path`, which is there when the block ends, and not if it fails. Raises CannotWrite."""
    with _told(path, name, CannotWrite):
        target = _target(path)
        if _is_written_through(target):
            with target.open("w", encoding="utf-8") as file:
                yield file
            return
        partial = _partial(target)
        try:
            with partial.open("w", encoding="utf-8") as file:
                yield file
            if target.exists():
                shutil.copymode(target, partial)
            move_into_place(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    return path.expanduser().resolve()


def _is_written_through(target: Path) -> bool:
    return target.exists() and not target.is_file()


def _partial(target: Path) -> Path:
    return target.parent / f".partial_{os.getpid()}"  # as long a name as any file may have


@contextmanager
def _told(path: Path, name: str, kind: type[CannotWrite]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(_target(path).parent)):
            raise  # of another file that is read on the way
        raise kind(f"{name}: {str(path)[:300]} cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:
        if not is_loop(error):
            raise
        raise kind(f"{name}: {str(path)[:300]} cannot be written: it is a link to itself") from error


def is_loop(error: RuntimeError) -> bool:
    """What pathlib raises of a link that leads to itself."""
    return str(error).startswith("Symlink loop")


def first_of(error: BaseException) -> BaseException:
    """The error that came first, out of groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def to_stdout(work: Callable[[], int]) -> int:
    """The exit code of `work`; 1, with a line unless the reader has seen enough (`| head`), where standard output takes
    no more of it."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except (OSError, BaseExceptionGroup) as error:
        first = first_of(error)
        if not isinstance(first, OSError) or first.filename is not None or not _is_full_or_closed(first):
            raise
        if first.errno != errno.EPIPE:
            print(f"error: standard output cannot be written: {first.strerror}", file=sys.stderr)
        with suppress(OSError, ValueError):  # nothing more may be written at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _is_full_or_closed(error: OSError) -> bool:
    return error.errno == errno.EPIPE or error.errno in PLACES
