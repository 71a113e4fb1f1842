"""A run on CPU whose weights travel as they do between GPUs, which the configuration rightly refuses:
`python gloo_run.py RUN_DIR [key=value ...]`."""

import asyncio
import logging
import sys
from pathlib import Path

from capo_ray.config.compose import compose
from capo_ray.training.run import run
from tests.engines.gloo_for_nccl import OverNccl


def main(run_dir: str, *overrides: str) -> None:
    config = compose(["+experiment=tiny_cpu", *overrides])
    cluster = OverNccl(**config.cluster.model_dump())
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    Path(run_dir).mkdir()
    asyncio.run(run(config.model_copy(update={"cluster": cluster}), Path(run_dir)))


if __name__ == "__main__":
    main(*sys.argv[1:])
