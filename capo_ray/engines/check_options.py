"""`python -m capo_ray.engines.check_options`: a program of its own for `engines.options`, which imports no library.

Reads {"vllm": {place: options}, "deepspeed": {place: [ZeRO stage, options]}} and writes a list of faults, both as JSON.
What the libraries write while they are imported goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any


def faults(asked: dict[str, Any]) -> Iterator[str]:
    if asked["vllm"]:
        from capo_ray.engines.vllm_options import as_vllm_takes

        for place, given in asked["vllm"].items():
            try:
                as_vllm_takes(given)
            except ValueError as error:
                yield f"{place}.{error}"
    if asked["deepspeed"]:
        from capo_ray.engines.deepspeed_options import check

        for place, (stage, given) in asked["deepspeed"].items():
            try:
                check(given, stage)
            except ValueError as error:
                yield f"{place}.{error}"


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        json.dump(list(faults(json.load(sys.stdin))), answer)
