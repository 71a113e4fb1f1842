"""Random settings with hostile values: a valid configuration, or the project's own error in lines that can be read.

`CAPO_FUZZ=N` tries N times as many (mutate); what was tried stands in docs/reliability.md.
"""

from __future__ import annotations

import copy
import random
import re
import time
import warnings
from typing import Any

import pytest
import yaml
from fuzz.mutate import TIMES

from capo_ray.config.compose import compose, conf_dir, validate
from capo_ray.config.fault import ALIASES, ConfigError, keys
from capo_ray.config.run import Config
from capo_ray.planning.plan import plan_for, render

SECRET = "sk-fuzzed0123456789abcdef"
FOREIGN = re.compile(
    r"pydantic|omegaconf|validation error|Input should|Traceback|Config search path|Extra inputs", re.I
)
KEYS = sorted(keys(Config))
GROUPS = {
    path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in conf_dir().iterdir() if path.is_dir()
}
BASES = ("tiny_cpu", "tiny_cpu_text", "llama1b_intersection", "qwen7b_grpo", "llama3b_genorm", "smollm2_cpu")

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, 64, -1, -5, 10**9, 10**18, 10**30, 0.0, 0.5, 1.0, -0.5, 1e-30, 1e-7, 0.3,
    1e30, 1e300, float("inf"), float("-inf"), float("nan"), "", " ", "x", "inf", "nan", "1e400", "true", "null",
    "1", "0x10", "1_000", "-", "x" * 5000, "é" * 300, "\t", "\n", "a\nb", "\x00", "\udcff", "\u202e", "🙂",
    "{{ messages }}", "{% for %}", "((((", "(a)", "[a-z]+", "../..", "/", "/dev/null", "~", "os:system",
    "os:getcwd", "no_such:thing", ":", "a:b:c", SECRET, f"https://me:{SECRET}@h/v1", "http://h/v1",
    "http://h:99999/v1", "http://h h/v1", "h:1", "auto", "asset:tiny_policy", "asset:none", "a/b", "random",
    "intersection", "majority", "average", "greedy", "grpo", "capo", "cispo", "gspo", "k1", "critic", "pairs",
    "turns", "apart", "gpu", "cpu", "http", "vllm", "truth", "placebo", "arithmetic", "math", [], [1], [1, 2],
    [0.9, 0.95], [True, "x"], [[[]]], [float("nan"), 1], ["http://h/v1"], ["seed"], {}, {"a": 1}, {"path": "a/b"},
    {"kind": "http"}, [{"kind": "http"}], [{"model": {"path": "a/b"}}], {"source": "arithmetic"},
    {"a": {"b": {"c": [1, {"d": None}]}}},
]  # fmt: skip
TEXTS = [
    "[",
    "]",
    "{",
    "}",
    "a,b",
    "'",
    '"',
    "${x}",
    "${policy.path}",
    "a=b",
    "#",
    "\\",
    "[1,2",
    "{a:1",
    "key:",
    "$(x)",
    "%s",
    "{0}",
]


def told(error: ConfigError) -> None:
    said = str(error)
    assert said.strip() and SECRET not in said, said[:300]
    assert all(0 < len(line) <= 1500 for line in said.split("\n")), said[:300]
    assert not FOREIGN.search(said), said[:500]


def usable(config: Config) -> None:
    """It can be written down, read again, and planned."""
    assert validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
    assert len(render(plan_for(config))) < 10_000


def tried(case: Any, work: Any) -> bool:
    """Whether a configuration came of it. Anything but that and ConfigError is a failure that shows the case."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            usable(work())
        return True
    except ConfigError as error:
        told(error)
        return False
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {str(error)[:300]} of {str(case)[:300]!r}")
    finally:
        assert time.process_time() - start < 30, case


def spelled(value: Any, chance: random.Random) -> str:
    """As somebody might write it on a command line, with quotes or without."""
    if isinstance(value, str):
        return chance.choice((value, value, f"'{value}'", f'"{value}"'))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return re.sub(r"\s", "", str(value)).replace("'", "").replace("None", "null").replace("True", "true")


def argument(chance: random.Random) -> str:
    what = chance.random()
    if what < 0.15:
        group = chance.choice(sorted(GROUPS))
        key = chance.choice(
            (group, f"{group}@{chance.choice(('policy', 'critic.model', 'x'))}", f"+{group}", f"~{group}")
        )
        return f"{key}={chance.choice((*GROUPS[group], 'null', 'nope', spelled(chance.choice(VALUES), chance)))}"
    if what < 0.25:
        key = chance.choice((*ALIASES, "".join(chance.choices("abc.[]@+~ =é", k=chance.randint(0, 8)))))
    else:
        key = chance.choice(KEYS)
        if chance.random() < 0.1:
            at = chance.randrange(len(key))
            key = key[:at] + key[at + 1 :]
    value = chance.choice(TEXTS) if chance.random() < 0.15 else spelled(chance.choice(VALUES), chance)
    return chance.choice(("", "", "", "", "+", "++", "~")) + key + chance.choice(("=", "=", "=", "=", "")) + value


def test_command_lines() -> None:
    chance, number = random.Random(20261126), 60 * TIMES
    made = 0
    for _ in range(number):
        base = [f"{chance.choice(('+', ''))}experiment={chance.choice(BASES)}"] * (chance.random() < 0.95)
        given = [*base, *(argument(chance) for _ in range(chance.randint(1, 2)))]
        made += tried(given, lambda given=given: compose(given))
    print(f"\n{number} command lines, of which {made} are configurations")
    assert 0 < made < number


def test_whole_configurations() -> None:
    """As a run's config.yaml may come back: everything Hydra never sees."""
    bases = [compose([f"+experiment={name}"]).model_dump(mode="json") for name in BASES]
    chance, number = random.Random(20261127), 600 * TIMES
    made = 0
    for _ in range(number):
        tree = copy.deepcopy(chance.choice(bases))
        for _ in range(chance.choice((1, 1, 2))):
            *way, last = chance.choice(KEYS).split(".")
            place = tree
            for part in way:
                if not isinstance(place.get(part), dict):
                    place[part] = {}
                place = place[part]
            if chance.random() < 0.05:
                place.pop(last, None)
            else:
                place[last] = copy.deepcopy(chance.choice(VALUES))
        made += tried(tree, lambda tree=tree: validate(tree))
    print(f"\n{number} whole configurations, of which {made} are valid")
    assert 0 < made < number
