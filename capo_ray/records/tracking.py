"""One run's numbers: metrics.jsonl, TensorBoard, wandb, what the terminal shows, a table of before and after.

    RUN_DIR/metrics.jsonl  tensorboard/  wandb/offline-run-*/

A line of metrics.jsonl is `{"step": 7, "time": ..., NAME: number, ...}`: what step 7 did, the first being 1, or, where
the names begin with `evaluation/`, how the policy after 7 steps does, which is version 7. Numbers that JSON has no word
for (nan, inf) stand as null. The file is the truth and can be cut back to a checkpoint; TensorBoard hides what was cut
off, wandb shows it on one axis. Leaves out what the numbers mean (tally), how the terminal shows them (terminal), and
the responses themselves (the aggregators write samples and the ledger).
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from time import time
from typing import TYPE_CHECKING

from capo_ray.config.blocks import Tracking
from capo_ray.config.critic import Canaries
from capo_ray.config.run import Config
from capo_ray.files.checkpoint import Checkpoints, read_state
from capo_ray.files.durable import sync_one, write_text
from capo_ray.files.run_dir import RunDirError
from capo_ray.records.sinks import Beside, Sink, TensorBoard, start_wandb
from capo_ray.records.terminal import display, table_rows
from capo_ray.records.watch import (
    CanaryGap,
    CanaryWatch,
    Diverged,
    DivergenceWatch,
    HackingWatch,
    NonfiniteWatch,
    Watch,
)
from capo_ray.types import JsonDict, Metrics

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

PREFIX = "evaluation/"
BY_STEP = ("samples", "critiques", "responses")
"""Folders in which the aggregators write a file per step and shard."""
STEP_FOLDERS = ("exports", "nonfinite")
"""Folders in which a step has one of its own, step_N."""
STEP_FILE = re.compile(r"(\d+)-\d+\.(?:jsonl|parquet)")


class Tracker:
    """Writes down one run. Not for several processes: the driver has it."""

    def __init__(
        self,
        run_dir: Path,
        config: Tracking,
        *,
        run_name: str,
        resolved_config: JsonDict,
        total_steps: int,
        resume_state: JsonDict | None = None,
        console: bool = True,
        canaries: Canaries | None = None,
        best_by: str | None = None,
        stop_after: int = 0,
        stop_after_nonfinite: int = 1,
    ) -> None:
        """`resume_state` is what `state` returned when the checkpoint was written; a run keeps its wandb id by it.

        `canaries` has the floors below which it warns of the critic, `best_by` is the metric of `score`, and more than
        `stop_after` steps in a row with a broken policy end the run (0: they do not), and so do `stop_after_nonfinite`
        with a gradient that is not finite.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._file = run_dir / "metrics.jsonl"
        self._display = display(total_steps) if console else None
        self._wandb_id = str((resume_state or {}).get("wandb_id") or secrets.token_hex(4))
        self._restarts = 0
        self._canaries = canaries
        self._best_by = best_by
        self._since_saved: list[float] = []
        self._synced = 0
        """Files of so many steps are on the disk."""
        self._stop_after = stop_after
        self._stop_after_nonfinite = stop_after_nonfinite
        self._watches = self._new_watches()
        self._sinks: list[Sink] = []
        if config.tensorboard:
            folder = run_dir / "tensorboard"
            self._sinks.append(Beside("TensorBoard", TensorBoard(folder), where=folder))
        if config.wandb != "off":
            started = start_wandb(
                run_dir, config, run_id=self._wandb_id, run_name=run_name, resolved_config=resolved_config
            )
            self._sinks.extend([Beside("wandb", started, where=run_dir / "wandb")] if started else [])
        self._evaluations = evaluations(_keep_whole_lines(self._file, lambda line: True))

    @classmethod
    def open(cls, config: Config, run_dir: Path) -> Tracker:
        """Of a new run, or of one that goes on from the newest checkpoint in `run_dir`, or from its start."""
        newest = Checkpoints(run_dir, keep=config.keep_checkpoints).newest()
        state = read_state(newest) if newest else {"step": 0}
        made = cls(
            run_dir,
            config.tracking,
            run_name=run_dir.name,
            resolved_config=config.model_dump(mode="json"),
            total_steps=config.steps,
            resume_state=state,
            canaries=config.critic.canaries if config.critic else None,
            best_by=config.keep_best,
            stop_after=config.stop_after_broken_steps,
            stop_after_nonfinite=config.trainer.stop_after_nonfinite,
        )
        made.rewind(state["step"])
        return made

    def add(self, sink: Sink) -> None:
        """Write what comes to `sink` too, until `finish` closes it."""
        self._sinks.append(sink)

    def step(self, step: int, metrics: Metrics) -> None:
        """Write down what step `step` (from 1) did. Then raises Diverged where the run must not go on."""
        self._write(step, metrics | {"run/restarts": float(self._restarts)})
        self._since_saved.extend(metrics[name] for name in (self._best_by,) if name in metrics)
        if self._display is not None:
            self._display.step(step, metrics)
        for watch in self._watches:
            if (warning := watch.look(metrics)) is not None:
                log.warning("step %d: %s", step, warning)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Write down how the policy does after `step` steps; `metrics` without the prefix."""
        self._write(step, {PREFIX + name: value for name, value in metrics.items()})
        self._evaluations[step] = dict(metrics)
        if self._display is not None:
            self._display.evaluation(step, metrics)

    def has_evaluation(self, step: int) -> bool:
        """Whether it is written down how the policy does after `step` steps."""
        return step in self._evaluations

    def rewind(self, step: int) -> None:
        """Leave out what is not part of a run that has done `step` steps: later lines and files are moved to
        RUN_DIR/rolled_back/NUMBER, for who wants to know what they said."""
        self._synced = min(self._synced, step)
        aside = _next_folder(self._run_dir / "rolled_back")
        kept = _keep_whole_lines(self._file, lambda line: line["step"] <= step, aside=aside)
        self._evaluations = evaluations(kept)
        self._watches = self._new_watches()
        for line in kept:
            if not is_evaluation(line):
                known = {name: value for name, value in line.items() if value is not None}
                for watch in self._watches:
                    with suppress(Diverged):
                        watch.look(known)  # what it says of these steps was said
        for path in [path for folder in BY_STEP for path in (self._run_dir / folder).glob("*")]:
            found = STEP_FILE.fullmatch(path.name)
            if path.suffix == ".partial":
                path.unlink()
            elif found and int(found[1]) > step:
                (aside / path.parent.name).mkdir(parents=True, exist_ok=True)
                path.rename(aside / path.parent.name / path.name)
        for name in STEP_FOLDERS:
            for path in (self._run_dir / name).glob("step_*"):
                number = path.name.removeprefix("step_")
                if number.isdecimal() and int(number) > step:
                    (aside / name).mkdir(parents=True, exist_ok=True)
                    path.rename(aside / name / path.name)
        for sink in self._sinks:
            sink.rewind(step)
        if self._display is not None:
            self._display.rewind(step)

    def _new_watches(self) -> list[Watch]:
        watches: list[Watch] = [HackingWatch(), DivergenceWatch(stop_after=self._stop_after)]
        watches.append(NonfiniteWatch(stop_after=self._stop_after_nonfinite, run_dir=self._run_dir))
        if (floors := self._canaries) is not None:
            watches.append(CanaryGap())
            watches.append(CanaryWatch(min_precision=floors.min_precision, min_recall=floors.min_recall))
        return watches

    def sync(self, step: int) -> None:
        """Have on the disk what is written of the first `step` steps: to be called before a checkpoint names them as
        done. Until then nothing of it is synced, neither lines of metrics.jsonl nor files of the aggregators: a loss of
        power takes what is after the last checkpoint, and a run would go back there anyway. What aggregators on other
        machines wrote went to the shared storage when they closed it."""
        folders = [folder for name in BY_STEP if (folder := self._run_dir / name).is_dir()]
        for path in [path for folder in folders for path in folder.iterdir()]:
            if (found := STEP_FILE.fullmatch(path.name)) and self._synced < int(found[1]) <= step:
                sync_one(path)
        for path in (self._file, *folders, self._run_dir):
            if path.exists():
                sync_one(path)
        self._synced = step

    def restarted(self, number: int) -> None:
        """Say in the steps that follow that all actors have been started again `number` times."""
        self._restarts = number

    def state(self) -> JsonDict:
        """What a checkpoint must hold, so that a resumed run is the same one in wandb."""
        return {"wandb_id": self._wandb_id}

    def score(self, step: int) -> float | None:
        """How good the policy after `step` steps is, for which checkpoint is the best: the metric `best_by` of its
        evaluation, or else its mean over the steps since this was last asked; None where neither has it."""
        seen, self._since_saved = self._since_saved, []
        if self._best_by is None:
            return None
        evaluated = self._evaluations.get(step, {}).get(self._best_by.removeprefix(PREFIX))
        return evaluated if evaluated is not None else fmean(seen) if seen else None

    def finish(self) -> None:
        """Close the display, TensorBoard and wandb; nothing can be written there afterwards."""
        if self._display is not None:
            self._display.close()
        while self._sinks:
            self._sinks.pop().close()

    def table(self) -> Table | None:
        """The first evaluation beside the last one; None before there are two."""
        if len(self._evaluations) < 2:
            return None
        from rich.table import Table

        first, last = min(self._evaluations), max(self._evaluations)
        table = Table(title=f"Held-out problems after {first} and {last} training steps", title_justify="left")
        table.add_column("")
        for column in (f"after {first}", f"after {last}", "change"):
            table.add_column(column, justify="right")
        for row in table_rows(self._evaluations[first], self._evaluations[last]):
            table.add_row(*row)
        return table

    def _write(self, step: int, metrics: Metrics) -> None:
        line = {"step": step, "time": time(), **metrics}
        text = json.dumps({name: value if math.isfinite(value) else None for name, value in line.items()})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        for sink in self._sinks:
            sink.write(step, metrics)


def is_evaluation(line: JsonDict) -> bool:
    """Whether a line of metrics.jsonl is of an evaluation, and not of a step."""
    return any(name.startswith(PREFIX) for name in line)


def evaluations(lines: Sequence[JsonDict]) -> dict[int, Metrics]:
    """Step -> metrics without the prefix, of the lines that are evaluations; of two at one step the later one."""
    return {
        line["step"]: {
            name.removeprefix(PREFIX): math.nan if value is None else value
            for name, value in line.items()
            if name.startswith(PREFIX)
        }
        for line in lines
        if is_evaluation(line)
    }


def _next_folder(parent: Path) -> Path:
    """PARENT/1, or the first number that is free; not made."""
    numbers = [int(path.name) for path in parent.glob("*") if path.name.isdecimal()]
    return parent / str(max(numbers, default=0) + 1)


def _keep_whole_lines(file: Path, stays: Callable[[JsonDict], bool], *, aside: Path | None = None) -> list[JsonDict]:
    """Cut `file` down to the lines that stay, in one move, and return them; the others go to a file of the folder
    `aside`. A torn last line never stays."""
    if not file.is_file():
        return []
    kept: list[tuple[str, JsonDict]] = []
    gone: list[str] = []
    raw = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, text in enumerate(raw, start=1):
        line = _line(file, number, text) if text.endswith("\n") else None
        if line is not None and stays(line):
            kept.append((text, line))
        elif line is not None:
            gone.append(text)
    if aside is not None and gone:
        aside.mkdir(parents=True)
        write_text(aside / file.name, "".join(gone))
    if len(kept) < len(raw):
        write_text(file, "".join(text for text, _ in kept))
    return [line for _, line in kept]


def _line(file: Path, number: int, text: str) -> JsonDict:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunDirError(f"{file}, line {number} is not JSON ({error.msg}); mend or remove that line") from error
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise RunDirError(f'{file}, line {number} has no "step" that is a whole number; mend or remove that line')
    return line
