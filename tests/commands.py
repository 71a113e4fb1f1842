"""What the programs of this package make of their arguments, so that commands of the documentation can be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capo_ray.arguments import read
from capo_ray.config.compose import compose
from capo_ray.credit import __main__ as credit
from capo_ray.critic_bench import __main__ as critic_bench
from capo_ray.data import __main__ as data
from capo_ray.doctor import __main__ as doctor
from capo_ray.evaluate import settings
from capo_ray.evaluate.suites import find_suite
from capo_ray.faults import __main__ as faults
from capo_ray.gpu_check import __main__ as gpu_check
from capo_ray.lab import __main__ as lab
from capo_ray.lab.design import load
from capo_ray.revote import __main__ as revote
from capo_ray.sft.settings import parse
from capo_ray.smollm2 import __main__ as smollm2
from capo_ray.view import __main__ as view

Arguments = Sequence[str]


def _evaluate(arguments: Arguments) -> None:
    options = settings.options_of(arguments)
    settings.configuration(options)
    find_suite(options.suite or "", options.suite_overrides)


def _critic_bench(arguments: Arguments) -> None:
    options = critic_bench.options_of(arguments)
    if options.replay is None:
        critic_bench.configuration(options)


def _data(arguments: Arguments) -> None:
    assert arguments[0] == "check"
    data.options_of(arguments[1:])


def _lab(arguments: Arguments) -> None:
    asked = lab.parse(arguments)
    load(asked.run).runs(asked.arms)


CHECKS: dict[str, Callable[[Arguments], object]] = {
    "launch": compose,
    "sft": parse,
    "evaluate": _evaluate,
    "critic_bench": _critic_bench,
    "data": _data,
    "doctor": doctor.asked,
    "faults": lambda arguments: faults.chosen(faults.asked(arguments).kinds),
    "gpu_check": gpu_check.options_of,
    "lab": _lab,
    "credit": lambda arguments: read(credit.SETTINGS, arguments),
    "revote": revote.arguments,
    "smollm2": smollm2.options_of,
    "view": view.arguments,
}
"""Program -> what raises, or ends the process, where its arguments are wrong."""
