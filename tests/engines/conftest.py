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


@pytest.fixture(scope="module")
def one() -> Iterator[Ranks]:
    ranks = Ranks(1)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="module")
def vllm_environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)
