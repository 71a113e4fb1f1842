"""One Ray session for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_ray import small_ray


@pytest.fixture(scope="package")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with small_ray(Path(__file__).resolve().parent, tmp_path_factory.mktemp("logs")) as ray:
        yield ray
