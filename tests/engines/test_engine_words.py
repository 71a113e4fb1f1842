"""The cause of an engine's end is found in what its processes wrote, and only there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from capo_ray.engines.engine_words import EngineWords

AT = "11-26 18:14:11 [core.py:1510]"
OF_ONE = f"""(EngineCore pid=7) ERROR {AT} EngineCore failed to start.
(EngineCore pid=7) ERROR {AT}   File "x.py", line 1, in f
(EngineCore pid=7) ERROR {AT} ModuleNotFoundError: No module named 'flashinfer'\r
"""
OF_TWO = f"""(Worker_TP1 pid=8) ERROR {AT} torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB
(EngineCore pid=7) ERROR {AT} Exception: WorkerProc initialization failed. See stack trace for root cause.
"""


@contextmanager
def output_is(kind: str) -> Iterator[None]:
    """Descriptor 1 for the while: a file, or a pipe as of a terminal."""
    before = os.dup(1)
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
    else:
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(writing)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
        if kind == "pipe":
            os.close(reading)


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        (OF_ONE, "ModuleNotFoundError: No module named 'flashinfer'"),
        (OF_TWO, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        ("(EngineCore pid=7) INFO all is well\nValueError: of somebody else\n", ""),
    ],
)
def test_the_first_error_of_an_engines_process_is_the_cause(written: str, cause: str) -> None:
    with output_is("file"):
        os.write(1, b"(EngineCore pid=6) ERROR now [core.py:1] ValueError: of an engine before\n")
        words = EngineWords()
        os.write(1, written.encode())
        assert words.cause() == cause


def test_what_goes_to_no_file_is_not_read() -> None:
    with output_is("pipe"):
        words = EngineWords()
        os.write(1, OF_ONE.encode())
        assert words.cause() == ""
