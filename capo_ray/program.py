"""What the programs of this package have in common: help, keys of the form key=value, and an exit code with one line of
error instead of a traceback.

Leaves out what each program does, how a process ends (leaving), and a run's own ending (launch).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from capo_ray.arguments import BadArgument, asks_for_help, refuse_flags
from capo_ray.config.fault import ConfigError
from capo_ray.data.problem import DataError
from capo_ray.files.output import PLACES, BadOutput, CannotWrite, first_of, is_loop, to_stdout
from capo_ray.files.run_dir import RunDirError
from capo_ray.leaving import adopt_orphans, sigterm_as_ctrl_c

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes: something went wrong on the way, what was asked for cannot be done, Ctrl-C."""
VERBOSE = {"-v", "--verbose"}
GOES_ON = "The same command goes on from here."


def run_program(
    work: Callable[[list[str]], int],
    argv: Sequence[str] | None,
    usage: str,
    *,
    settings: Callable[[], str],
    bare: bool = False,
    failures: tuple[type[BaseException], ...] = (),
    afterwards: str = "",
) -> int:
    """Call `work` with the arguments (`argv`, or the command line's); the exit code is its own, or that of an error.

    `-v` or `--verbose`, anywhere, has it say more of its own work. Bad input is told in one line, and so are `failures`
    and Ctrl-C or SIGTERM, with what to do `afterwards`; other errors are programming errors and keep their traceback.
    `--help`, `-h` and `help` print `usage` and the `settings`. No argument at all is `usage` and exit code 2, unless
    the program works `bare`.
    """
    if argv is None:  # this process is the program's
        adopt_orphans()
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments = [f"+{argument}" if argument.startswith("experiment=") else argument for argument in arguments]
    helps = asks_for_help(arguments)
    if helps or not (arguments or bare):
        return to_stdout(lambda: _show(usage, settings() if helps else "--help lists the settings", helps))
    logging.basicConfig(level=logging.WARNING, format="%(levelname).1s %(message)s", stream=sys.stderr)
    if VERBOSE & set(arguments):
        logging.getLogger("capo_ray").setLevel(logging.INFO)
        arguments = [argument for argument in arguments if argument not in VERBOSE]
    try:
        refuse_flags(arguments)
        with sigterm_as_ctrl_c():
            return to_stdout(lambda: work(arguments))
    except (BadArgument, ConfigError, DataError, RunDirError, BadOutput) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except CannotWrite as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in OPTIONAL:
            raise
        print(f"error: {_not_installed([library])}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\ninterrupted. {afterwards}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except failures as error:
        print(f"error: {first_of(error)}\n{afterwards}".rstrip(), file=sys.stderr)
        return FAILED
    except OSError as error:
        if error.errno not in PLACES or error.filename is None:
            raise
        print(f"error: {str(error.filename)[:300]}: {error.strerror}", file=sys.stderr)
        return FAILED
    except RuntimeError as error:
        if not is_loop(error):
            raise
        print(f"error: {error}: a link that leads to itself", file=sys.stderr)
        return BAD_INPUT


def _show(usage: str, settings: str, asked: bool) -> int:
    print(f"{usage.rstrip()}\n\n{settings}")
    return 0 if asked else BAD_INPUT


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


OF_A_RUN = ("ray", "vllm", "deepspeed", "torch", "transformers", "numpy", "pyarrow", "rich")
"""What a run imports and the core install has not."""
OF_LORA = "peft"
OPTIONAL = {
    *OF_A_RUN,
    OF_LORA,
    "aiohttp",
    "datasets",
    "matplotlib",
    "nicegui",
    "psutil",
    "safetensors",
    "tensorboard",
    "wandb",
}


def need(*libraries: str) -> None:
    """Raises ConfigError, before anything is made, where one of them is not installed."""
    if missing := [name for name in libraries if find_spec(name) is None]:
        raise ConfigError(_not_installed(missing))


def _not_installed(missing: Sequence[str]) -> str:
    return (
        f"this needs {', '.join(missing)}, which the core install (pip install .) does not have: make setup in a "
        "checkout, or pip install --no-deps -r requirements/gpu.lock"
    )
