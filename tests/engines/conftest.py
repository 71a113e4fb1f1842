"""What tests of several engines use: trainer ranks as processes, and the environment of vLLM's engines on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from engines.trainer_ranks import Ranks

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Started(dict[int, Ranks]):
    """Ranks by how many there are, started when they are first asked for."""

    def __missing__(self, count: int) -> Ranks:
        self[count] = Ranks(count)
        return self[count]


@pytest.fixture(scope="session")
def by_count() -> Iterator[Started]:
    """For all files that come: a rank costs seconds of imports."""
    made = Started()
    yield made
    for ranks in made.values():
        ranks.stop()


@pytest.fixture(scope="session")
def one(by_count: Started) -> Ranks:
    return by_count[1]


@pytest.fixture(scope="session")
def two(by_count: Started) -> Ranks:
    return by_count[2]


@pytest.fixture(scope="module")
def vllm_environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)
