"""`python -m capo_ray.sft`: supervised training on conversations, with the engine that the RL trainer uses.

`model` and `data`, and all they hold, are set as in a run's `policy` and `data`. Which sequences step s learns from is
a function of (seed, s). dry_run=true prints the settings, what a rank needs, an example and whether it could start.
Leaves out: more than one machine, and what carries loss (conversations).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal

from capo_ray.config.listing import listing
from capo_ray.engines.options import check
from capo_ray.planning.machine import gpu_sizes
from capo_ray.program import BAD_INPUT, OF_LORA, need, run_program
from capo_ray.sft.examples import located, prepare
from capo_ray.sft.plan import dry_run, refuse_unfit
from capo_ray.sft.settings import Sft, check_out, parse
from capo_ray.sft.training import train_on

USAGE = """usage: python -m capo_ray.sft +experiment=NAME [key=value ...]

Supervised training on conversations, {"messages": [{"role", "content"}, ...]} a row, or with messages_field=null on
problems and their solutions. `model` and `data` alone name the path.

  python -m capo_ray.sft +experiment=qwen7b_sft                     # the paper's, from conf/experiment
  python -m capo_ray.sft model=FOLDER data=FILE.jsonl out=FOLDER learning_rate=1e-5
  python -m capo_ray.sft model=config.json model.tokenizer=FOLDER data=FILE.jsonl out=FOLDER   # from random weights
"""


def run(config: Sft) -> None:
    need("torch", "transformers", "deepspeed", *([OF_LORA] if config.lora else []))
    import torch

    found: Literal["cpu", "gpu"] = "gpu" if torch.cuda.is_available() else "cpu"
    device = found if config.device == "auto" else config.device
    if device == "gpu":
        refuse_unfit(config, gpu_sizes())
    check_out(config)
    config = located(config)
    train_on(config, prepare(config), device)


def work(arguments: list[str]) -> int:
    # before torch is imported: spinning threads of busy processes starve each other
    os.environ["OMP_NUM_THREADS"] = "1"
    config = parse(arguments)
    check({}, {"deepspeed": (config.zero_stage, config.deepspeed)})
    if config.dry_run:
        return 0 if dry_run(config) else BAD_INPUT
    run(config)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(
        work,
        argv,
        USAGE,
        settings=lambda: listing(Sft),
        failures=(FloatingPointError,),
        afterwards="With checkpoint_every, resume=true goes on from its last checkpoint.",
    )


if __name__ == "__main__":
    sys.exit(main())
