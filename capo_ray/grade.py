"""`python -m capo_ray.grade`: are the final answers right? Needs no engine.

A line in is {"gold", "response" or "answer"}, `response` being a text that ends in an answer and `answer` the bare
answer. A line out is the same plus "correct", "extracted" and, unless it is correct, "reason"; one line out per line
in, in order, whatever a line says. "correct" is null where there is no verdict: a line that cannot be read, an answer
that cannot be verified in time.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO, TextIO, TypeVar

from capo_ray.config.block import Block, setting
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import read_own
from capo_ray.leaving import leave
from capo_ray.program import run_program
from capo_ray.tasks.verify import Verifier
from capo_ray.types import JsonDict

T = TypeVar("T")


class BadLine(ValueError):
    """A line that cannot be graded."""


def parse_line(line: bytes) -> tuple[JsonDict, str, str]:
    """(the record, gold, response) of a line. Raises BadLine."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadLine(f"a JSON {type(record).__name__}, must be an object")
    if "gold" not in record:
        raise BadLine("no field 'gold'")
    if "response" not in record and "answer" not in record:
        raise BadLine("neither a field 'response' nor a field 'answer'")
    gold = _text(record, "gold")
    response = _text(record, "response") if "response" in record else f"\\boxed{{{_text(record, 'answer')}}}"
    return record, gold, response


def _text(record: JsonDict, field: str) -> str:
    value = record[field]
    endless = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or endless or not isinstance(value, str | int | float):
        said = f"a {type(value).__name__}" if isinstance(value, dict | list) else json.dumps(value)
        raise BadLine(f"field {field!r} must be a text or a number, is {said}")
    return str(value)


async def grade_line(line: bytes, verifier: Verifier) -> JsonDict:
    try:
        record, gold, response = parse_line(line)
    except BadLine as error:
        return _ungraded(line, str(error))
    found = await verifier.verify(gold, response)
    correct = None if found.answer == "unverifiable" else found.answer == "correct"
    graded: dict[str, Any] = {**record, "correct": correct, "extracted": found.extracted}
    return graded if correct else {**graded, "reason": found.reason}


def _ungraded(line: bytes, reason: str) -> JsonDict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    given = record if isinstance(record, dict) else {}
    return {**given, "correct": None, "extracted": None, "reason": reason}


def _written(graded: JsonDict) -> str:
    """As JSON: what a line had that JSON has not (NaN, Infinity) is null; one that is nested too deeply is left out."""
    try:
        return json.dumps(graded, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(graded))
    except RecursionError:
        kept = {key: graded.get(key) for key in ("correct", "extracted", "reason")}
        return json.dumps({**kept, "reason": kept["reason"] or "the line is nested too deeply to be repeated"})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def grade(source: BinaryIO, out: TextIO, *, processes: int, timeout_s: float) -> None:
    """Grade lines as they come, several at a time, and write them in order. Raises BrokenPipeError as soon as nobody
    reads `out` any more, whether another line comes or not."""
    verifier = Verifier(processes=processes, timeout_s=timeout_s)
    ahead: asyncio.Queue[asyncio.Task[JsonDict] | None] = asyncio.Queue(maxsize=8 * processes)

    async def read() -> None:
        while line := await _waited_for(source.readline):
            await ahead.put(asyncio.create_task(grade_line(line, verifier)))
        await ahead.put(None)

    async def watch() -> None:
        await _waited_for(partial(_until_closed, out))
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            watching = tasks.create_task(watch())
            while (graded := await ahead.get()) is not None:
                print(_written(await graded), file=out, flush=True)
            watching.cancel()
    finally:
        await verifier.close()


def _waited_for(call: Callable[[], T]) -> asyncio.Future[T]:
    """What `call` returns or raises, in a thread that no end of the loop waits for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def tell(done: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if result.done() else done(value))

    def work() -> None:
        try:
            tell(result.set_result, call())
        except OSError as error:
            tell(result.set_exception, error)

    threading.Thread(target=work, daemon=True).start()
    return result


def _until_closed(pipe: TextIO) -> None:
    """Wait until nobody reads a pipe any more; for ever where it is a file."""
    poll = select.poll()
    poll.register(pipe, 0)  # errors alone
    poll.poll()


USAGE = f"""usage: python -m capo_ray.grade [key=value ...] < FILE.jsonl

Are the final answers right?

{(__doc__ or "").partition("engine.")[2].strip()}

  python -m capo_ray.grade timeout=10 < answers.jsonl
"""


class Settings(Block):
    """Of this program."""

    processes: int | None = setting("answers verified at a time; null: as many as there are cores", None, ge=1, le=1024)
    timeout: float = setting("seconds until an answer is given up: no verdict", 5.0, ge=0.001, le=1e6)


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    processes = given.processes or len(os.sched_getaffinity(0))
    asyncio.run(grade(sys.stdin.buffer, sys.stdout, processes=processes, timeout_s=given.timeout))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings), bare=True)


if __name__ == "__main__":
    leave(main())  # any other end would wait for a thread that still waits for input
