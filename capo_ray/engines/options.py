"""Asks vLLM and DeepSpeed about the options that a configuration hands on to them, before anything starts.

In a process of its own, since importing them takes seconds, and only where such options are given. Leaves out what is
refused whatever the libraries say (config.library) and the asking itself (engines.check_options).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from capo_ray.config.critic import voter_field
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config

log = logging.getLogger(__name__)

PATIENCE_S = 300
"""Importing both libraries takes 10 to 30 s on two busy cores."""


def check_options(config: Config, *, trains: bool = True) -> None:
    """Those of a run, and of its trainer unless nothing is trained; see `check`."""
    voters = enumerate(config.critic.voters if config.critic else ())
    engines = {"rollout.engine": config.rollout.engine}
    engines |= {f"{voter_field(number)}.engine": voter.engine for number, voter in voters}
    trainer = config.trainer
    check(engines, {"trainer.deepspeed": (trainer.zero_stage, trainer.deepspeed)} if trains else {})


def check(engines: Mapping[str, Any], trainers: Mapping[str, tuple[int, Any]]) -> None:
    """`engines` are options of vLLM by their place in the configuration, `trainers` those of DeepSpeed, each beside its
    ZeRO stage. Warns where a library is not installed.

    Raises ConfigError with one line for each place with an option that its library has not, or not of that type.
    """
    given: dict[str, dict[str, Any]] = {
        "vllm": {place: options for place, options in engines.items() if options},
        "deepspeed": {place: asked for place, asked in trainers.items() if asked[1]},
    }
    for library, places in given.items():
        if places and find_spec(library) is None:
            log.warning("%s: not checked, since %s is not installed here", ", ".join(places), library)
            places.clear()
    if any(given.values()) and (faults := _ask(json.dumps(given))):
        raise ConfigError("\n".join(faults))


@cache
def _ask(given: str) -> tuple[str, ...]:
    """The faults; runs of one program with the same options ask once."""
    command = [sys.executable, "-m", "capo_ray.engines.check_options"]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "DS_ACCELERATOR": "cpu"}
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env=os.environ | quiet,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"the libraries' options could not be checked: importing vLLM and DeepSpeed took more than {PATIENCE_S} s"
        ) from None
    if done.returncode:
        raise ConfigError(f"the libraries' options could not be checked:\n{done.stderr[-2000:]}")
    return tuple(json.loads(done.stdout))
