"""The program: `python -m capo_ray.launch +experiment=tiny_cpu [key=value ...]`.

Composes and checks the configuration, says what will run, runs it, and ends with one clear message whatever happens.
Leaves out how it is run (training).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import of_a_run
from capo_ray.config.run import Config
from capo_ray.data.problem import DataError
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.files.run_dir import RunDirError, claim
from capo_ray.leaving import leave
from capo_ray.program import BAD_INPUT, FAILED, INTERRUPTED, OF_A_RUN, OF_LORA, need, run_program
from capo_ray.training.run import Stopped, run

USAGE = """usage: python -m capo_ray.launch +experiment=NAME [key=value ...]

Trains a policy by CAPO or another of the algorithms.

  python -m capo_ray.launch +experiment=tiny_cpu

  +experiment=tiny_cpu              the whole pipeline on two CPU cores, in minutes
  +experiment=tiny_cpu_text         the same on real text, with a random model
  +experiment=llama3b_intersection  the paper's Llama-3.2-3B with intersection voting, on GPUs
  dry_run=true                      print configuration, plan, estimates of time and an example of what a critic reads
  -v                                say more: every actor's speed, what is resumed
  run_dir=DIR resume=true           continue a run from its last checkpoint
"""
GUIDE = Path("docs/tutorial.md")

MIB = 1 << 20

log = logging.getLogger("capo_ray")


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=of_a_run)


def work(arguments: list[str]) -> int:
    logging.captureWarnings(True)
    warnings.simplefilter("default", UserWarning)
    warnings.formatwarning = lambda message, *where, **more: str(message)  # a user's fault is in no line of code
    return launch(compose(arguments))


def launch(config: Config) -> int:
    """Run `config`; the exit code."""
    from capo_ray.planning.plan import refuse_unfit

    if config.dry_run:
        from capo_ray.training.dry_run import dry_run

        return 0 if dry_run(config) else BAD_INPUT
    refuse_unfit(config)
    need(*OF_A_RUN, *([OF_LORA] if config.trainer.lora else []))
    run_dir = run_dir_of(config)
    mine = claim(run_dir, resume=config.resume)
    try:
        asyncio.run(run(config, run_dir))
    except (ConfigError, DataError, RunDirError):
        mine.abandon()
        raise
    except (KeyboardInterrupt, asyncio.CancelledError, Stopped) as told:
        print(f"\ninterrupted. {told or ''}".rstrip() + f" {_where_to_go_on(run_dir)}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(f"error: {cause(error)}{_full(run_dir)}\n{_where_to_go_on(run_dir)}", file=sys.stderr)
        print(_keep_story(error, run_dir), file=sys.stderr)
        return FAILED
    finally:
        mine.release()
    print(f"\nEverything of this run: {run_dir}\n{_what_next(config, run_dir)}")
    return 0


def cause(error: BaseException) -> str:
    """The first thing that went wrong, out of task groups and Ray's wrapping."""
    from capo_ray.cluster.faults import cause_of

    return cause_of(error)


def run_dir_of(config: Config) -> Path:
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser().resolve()
    if config.resume:
        raise ConfigError("resume: name the run to resume with run_dir=DIR")
    return Path.cwd() / "runs" / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"


def _what_next(config: Config, run_dir: Path) -> str:
    """Of this run and this place: another vote than its own, no critic only where it had one, a page that is here."""
    lines = [f"Look inside it: python -m capo_ray.view {run_dir}"]
    if config.critic is not None and config.critic.critiques > 1:
        other = "majority" if config.reward.vote == "intersection" else "intersection"
        lines.append(f"Then try reward={other}, or algorithm=grpo critic=null to see what the critiques were worth.")
    if config.data.kind == "arithmetic" and GUIDE.is_file():
        lines.append(f"With problems of your own: {GUIDE}")
    return "\n".join(lines)


def _full(run_dir: Path) -> str:
    """What libraries say of a full disk seldom has the word."""
    free = shutil.disk_usage(run_dir).free
    return f" ({run_dir} is on a disk with {free / MIB:.0f} MiB left)" if free < 100 * MIB else ""


def _keep_story(error: BaseException, run_dir: Path) -> str:
    """Writes error.log, and says where to read on."""
    log_file = run_dir / "error.log"
    try:
        log_file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as unwritten:
        with suppress(OSError):
            log_file.unlink()  # a part of it, or none
        return f"{log_file} cannot be written ({unwritten.strerror}); the processes' own logs are in {run_dir / 'logs'}"
    return f"The whole story: {log_file}, and the processes' own logs in {run_dir / 'logs'}"


def _where_to_go_on(run_dir: Path) -> str:
    newest = Checkpoints(run_dir, keep=1).newest()
    if newest is None:
        return f"No checkpoint was written yet; what there is of the run is in {run_dir}"
    return f"The last checkpoint is {newest}; go on with: run_dir={run_dir} resume=true"


if __name__ == "__main__":
    leave(main())
