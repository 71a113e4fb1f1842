"""Files that are whole or not there, also after a loss of power: written beside their place, synced, then renamed.

A rename alone is whole for whoever looks, but a disk may keep the new name before the new bytes. Leaves out what is
written, and which of several files are looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """`text` in place of whatever `path` is: all of it, or what was there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
    move_into_place(partial, path)


def move_into_place(partial: Path, path: Path) -> None:
    """Rename a file, or a folder to a name that is free, once all of it is on the disk."""
    sync(partial)
    partial.replace(path)
    sync_one(path.parent)


def replace_folder(partial: Path, path: Path) -> None:
    """As `move_into_place`, for a folder that may take the place of another, which stays where this fails. Who is
    killed in between leaves that one as .NAME.before; the next call takes it away."""
    sync(partial)
    before = path.with_name(f".{path.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if path.exists():
        path.rename(before)
    try:
        move_into_place(partial, path)
    except OSError:
        if before.exists():
            before.rename(path)
        raise
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A free name beside the folder `path` to write it under, until `replace_folder`; what was written goes where that
    fails."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # where it filled the disk, there is room for messages again
        raise


def sync(path: Path) -> None:
    """Have the system write `path`, a file or a folder with all that is in it, to its disk."""
    if path.is_dir():
        for inside in path.iterdir():
            sync(inside)
    sync_one(path)


def sync_one(path: Path) -> None:
    """The bytes of a file, or the names in a folder, and nothing below it. Whichever process of this machine wrote
    them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
