"""Where numbers go beside the run's own file: TensorBoard and wandb, each imported when it is used.

Neither may stop a run or hold it up: each is written to from a thread of its own, and one that cannot start, breaks or
stands still is said so once and left out. Leaves out what is written and when (tracking).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from netrc import NetrcParseError, netrc
from pathlib import Path
from queue import SimpleQueue
from time import monotonic, time, time_ns
from typing import Any, Literal, Protocol
from urllib.parse import urlparse

from capo_ray.config.blocks import Tracking
from capo_ray.leaving import before_leaving
from capo_ray.types import JsonDict, Metrics

log = logging.getLogger(__name__)

SAMPLE_COLUMNS = (
    *("step", "prompt", "question", "gold", "response", "answer"),
    *("flagged steps", "critiques", "reward"),
)
"""Of the table of responses; the reward is the sum over the response's tokens."""
PATIENCE_S = 20
"""Seconds that a wandb server may take: to answer before a run is written offline, to take the rest at the end."""
ANSWER_S = 20
"""Seconds that wandb's own process has for an answer."""
STUCK_S = 30
"""Seconds that one write may take, all of them to processes and files of this machine."""


class Sink(Protocol):
    """Takes what the run's own file takes."""

    def write(self, step: int, metrics: Metrics) -> None: ...

    def rewind(self, step: int) -> None:
        """Later steps than `step` are done again."""
        ...

    def close(self) -> None: ...


class Beside:
    """A sink on a thread of its own: whatever it raises, and a call that does not end, are the end of it and not of the
    run. `where` is a folder that has what it was given so far."""

    def __init__(self, name: str, sink: Sink, *, where: Path, stuck_s: float = STUCK_S) -> None:
        self._name = name
        self._sink = sink
        self._where = where
        self._stuck_s = stuck_s
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy_since: float | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._go_on, daemon=True, name=f"{name} beside the run")
        self._thread.start()

    def write(self, step: int, metrics: Metrics) -> None:
        self._hand_over(partial(self._sink.write, step, metrics))

    def rewind(self, step: int) -> None:
        self._hand_over(partial(self._sink.rewind, step))

    def close(self) -> None:
        """Returns when all is written, or when it has been waited for: PATIENCE_S and another `stuck_s`."""
        self._calls.put(self._sink.close)  # one that broke has processes and files to close too
        self._calls.put(None)
        self._thread.join(PATIENCE_S if self._lost else PATIENCE_S + self._stuck_s)
        if self._thread.is_alive():
            self._lose(f"did not end within {PATIENCE_S + self._stuck_s:.0f} s")

    def _hand_over(self, call: Callable[[], None]) -> None:
        since = self._busy_since
        if since is not None and monotonic() - since > self._stuck_s:
            self._lose(f"has taken nothing for {self._stuck_s:g} s")
        if not self._lost:
            self._calls.put(call)

    def _go_on(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._lost and call != self._sink.close:
                continue
            self._busy_since = monotonic()
            try:
                call()
            except Exception as error:
                self._lose(f"has failed: {type(error).__name__}: {error}")
            self._busy_since = None

    def _lose(self, why: str) -> None:
        if not self._lost:
            self._lost = True
            log.warning("%s %s; the run goes on without it. What it took is in %s", self._name, why, self._where)


class TensorBoard:
    """An event file, of tensorboard's records: its torch front would bring torch into the driver, and its own writer of
    events has a thread that prints a traceback where the disk is full."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: Any = None
        """Opened by what is written first, where the boundary is (Beside)."""

    def write(self, step: int, metrics: Metrics) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, summary=Summary(value=values))

    def rewind(self, step: int) -> None:
        """TensorBoard leaves out events of later steps that stand before this."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        if self._records is not None:
            self._records.close()

    def _add(self, step: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._records is None:
            self._records = self._opened(Event(wall_time=time(), file_version="brain.Event:2"))
        self._records.write(Event(wall_time=time(), step=step, **what).SerializeToString())
        self._records.flush()

    def _opened(self, first: Any) -> Any:
        """A new file, named as TensorBoard looks for it and in the order of their times; `first` says what it is."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time_ns()}.{socket.gethostname()}.{os.getpid()}"
        records = RecordWriter((self._folder / name).open("xb"))
        records.write(first.SerializeToString())
        return records


class Wandb:
    """A wandb run. Its x axis is our step, not wandb's own, under which a resumed run can write a step again. wandb
    takes nothing back, so a run that went back by itself writes no step again that is there."""

    def __init__(self, run: Any, *, samples: Path | None = None, num_samples: int = 0) -> None:
        """`num_samples` responses of every step become a table; they are read from the files in `samples`."""
        self._run = run
        self._samples = samples
        self._num_samples = num_samples
        self._last = {True: -1, False: -1}
        """Whether it is a step, and not an evaluation -> the last one that was written."""
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Metrics) -> None:
        values: JsonDict = {name: value for name, value in metrics.items() if math.isfinite(value)}
        is_step = not any(name.startswith("evaluation/") for name in metrics)
        if step <= self._last[is_step]:
            return
        self._last[is_step] = step
        if is_step and self._samples is not None and (rows := sample_rows(self._samples, step, self._num_samples)):
            import wandb

            values["samples"] = wandb.Table(columns=list(SAMPLE_COLUMNS), data=rows)
        self._run.log({"step": step, **values})
        if not self._run.summary.keys():  # asked of wandb's process; what is logged it takes frozen too, for minutes
            raise TimeoutError(f"its process has answered nothing for {ANSWER_S} s")

    def rewind(self, step: int) -> None:
        """Nothing: see the class."""

    def close(self) -> None:
        import wandb

        try:
            self._run.finish()
        except TimeoutError:
            folder = Path(self._run.settings.sync_dir)
            log.warning(
                "wandb did not take everything within %d s; all of it is in %s: pass it on with `wandb sync %s`",
                PATIENCE_S,
                folder,
                folder,
            )
        finally:
            wandb.teardown()  # its process would outlive the run


def sample_rows(folder: Path, step: int, most: int) -> list[list[Any]]:
    """The first `most` responses that the aggregators wrote down of `step`, as rows of SAMPLE_COLUMNS."""
    own = f"{step:06d}-"  # no pattern: Python keeps 32,768 of those that it has compiled
    files = sorted(path for path in folder.glob("*.jsonl") if path.name.startswith(own))
    lines = (line for path in files for line in _lines(path))
    return [_sample_row(json.loads(line)) for line in islice(lines, most)]


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _sample_row(sample: JsonDict) -> list[Any]:
    flagged = sample["wrong_steps"]
    return [
        sample["step"],
        sample["prompt_id"],
        sample["question"],
        sample["gold"],
        sample["response"],
        sample["answer"],
        "not judged" if flagged is None else ", ".join(map(str, flagged)) or "none",
        "\n\n".join(f"[{critique['outcome']}] {critique['text']}" for critique in sample["critiques"]),
        math.fsum(sample["token_rewards"]),
    ]


def start_wandb(
    run_dir: Path, config: Tracking, *, run_id: str, run_name: str, resolved_config: JsonDict
) -> Wandb | None:
    """Start or resume the wandb run `run_id` below RUN_DIR/wandb; None where WANDB_MODE disables it and, said so once,
    where it cannot be."""
    if wandb_mode(config) == "disabled":
        return None
    try:
        with _temporary_files_gone_at_the_end():
            return _started(run_dir, config, run_id=run_id, run_name=run_name, resolved_config=resolved_config)
    except Exception as error:
        log.warning("wandb cannot start, the run goes on without it: %s: %s", type(error).__name__, error)
        return None


def _started(run_dir: Path, config: Tracking, *, run_id: str, run_name: str, resolved_config: JsonDict) -> Wandb:
    import wandb

    mode = wandb_mode(config)
    made = partial(Wandb, samples=run_dir / "samples", num_samples=config.wandb_samples)
    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        init_timeout=PATIENCE_S,
        summary_timeout=ANSWER_S,
        finish_timeout=PATIENCE_S,
        finish_timeout_raises=True,
    )
    init = partial(
        wandb.init,
        project=config.wandb_project,
        dir=str(run_dir),
        id=run_id,
        name=run_name,
        config=resolved_config,
        settings=settings,
    )
    if mode == "online":
        try:
            return made(init(mode=mode, resume="allow"))
        except (wandb.Error, OSError) as error:
            log.warning("wandb cannot be reached, the run is written to %s instead: %s", run_dir / "wandb", error)
            wandb.teardown()  # it holds on to the id of a run that did not start
            mode = "offline"
    return made(init(mode=mode))


@contextmanager
def _temporary_files_gone_at_the_end() -> Iterator[None]:
    """wandb makes folders for temporary files when it is imported, and its process sockets; it removes them at an end
    that a run has not (leaving.leave). What it makes in here stands in a folder that goes with the program."""
    folder = tempfile.mkdtemp(prefix="capo_ray-wandb-")
    before_leaving(partial(shutil.rmtree, folder, ignore_errors=True))
    before, named = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        if named is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = named


def wandb_mode(config: Tracking) -> Literal["online", "offline", "disabled"]:
    """auto: what WANDB_MODE says, else online when a key is configured, else offline."""
    if config.wandb == "online" or config.wandb == "offline":
        return config.wandb
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return "online" if asked == "online" else "disabled" if asked == "disabled" else "offline"
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether a key is at hand for wandb's server; `wandb.login` would ask the server, and wait for it."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
