"""The method and the judging service import without any engine, so that they can be used and tested anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "ray",
    "vllm",
    "deepspeed",
    "transformers",
    "tokenizers",
    "math_verify",
    "wandb",
    "hydra",
    "torch",
    "numpy",
    "pydantic",
)


@pytest.mark.parametrize("module", ["types", "credit.group", "credit.critique", "credit.__main__", "critics", "gate"])
def test_imports_without_engines(module: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import capo_ray.{module}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
