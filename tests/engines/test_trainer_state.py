"""A checkpoint may come from anybody: what is in it is loaded as numbers, whoever loads it, and nothing in it runs."""

import os
from pathlib import Path

import pytest
import torch

from capo_ray.engines.trainer_state import data_alone


class Evil:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> object:
        return Path.touch, (self._path,)


def test_what_is_no_number_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, ran = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"module": {"weight": torch.ones(2)}, "more": Evil(ran)}, file)
    with pytest.raises(ValueError, match=r"^the checkpoint DIR holds more than numbers \(getattr"), data_alone("DIR"):
        torch.load(file, weights_only=False)  # as DeepSpeed does
    assert not ran.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    torch.load(file, weights_only=False)
    assert ran.exists()
