"""Real inputs, from the folder that CAPO_TEST_DATA names; tests that need them skip where it is absent."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED = Path(os.environ.get("CAPO_TEST_DATA") or BESIDE)


def shared(name: str) -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no real test data: CAPO_TEST_DATA, or else {SHARED}, is not a folder")
    return SHARED / name


def records(name: str, limit: int) -> list[dict[str, Any]]:
    with gzip.open(shared(name), "rt", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
