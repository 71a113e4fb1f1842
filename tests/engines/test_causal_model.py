"""Weights that are not a model's own, or are no numbers, are refused: transformers makes them up with a warning."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_disk import little_room

from capo_ray.engines.causal_model import make
from capo_ray.engines.trainer_files import write_weights
from capo_ray.models.find import ASSETS

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tiny_policy", tmp_path / "model"))


def fault(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        make(str(folder), dtype=torch.bfloat16, seed=0)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"num_hidden_layers": 30},
            "lack 243 tensors, the first is model.layers.10.input_layernorm.weight: a ",
        ),
        ({"num_hidden_layers": 2}, "have, beyond what its config.json says, 9 tensors, the first is model.layers.2."),
        ({"tie_word_embeddings": False}, "lack 1 tensor, lm_head.weight: a download"),
        ({"intermediate_size": 64}, "have other shapes than its config.json says"),
    ],
)
def test_a_config_of_another_model(folder: Path, changes: dict[str, Any], expected: str) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert fault(folder).startswith(f"{folder}: its weights {expected}")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite(folder: Path, value: float) -> None:
    _change(folder, lambda tensors: tensors[UP][3, 4].fill_(value))
    assert fault(folder) == f"{folder}: its tensor {UP} holds numbers that are not finite: get it again"


def test_a_tensor_that_is_not_there(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.pop(UP))
    assert fault(folder).startswith(f"{folder}: its weights lack 1 tensor, {UP}: a download that ended early")


def test_weights_that_the_disk_does_not_take(tmp_path: Path) -> None:
    with little_room(), pytest.raises(OSError) as error:
        write_weights({"a": torch.ones(2000)}, tmp_path, adapter=False)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path))


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
