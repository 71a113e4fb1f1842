"""Real inputs stand in a folder `shared` beside the checkout; tests that need them skip where it is absent."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared(name: str) -> Path:
    if not SHARED.is_dir():
        pytest.skip("no folder `shared` with real data beside the checkout")
    return SHARED / name


def records(name: str, limit: int) -> list[dict[str, Any]]:
    with gzip.open(shared(name), "rt", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
