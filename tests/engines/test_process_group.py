"""How ranks join: what a processor is slow in is said once, by the first of them."""

import pytest
import torch

from capo_ray.engines.process_group import warn_if_slow

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", ["AVX2", "AVX512"])
def test_a_processor_without_bfloat16_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, width: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    warn_if_slow(torch.float32, CPU, 0)
    warn_if_slow(torch.bfloat16, torch.device("cuda"), 0)
    warn_if_slow(torch.bfloat16, CPU, 1)
    assert not caplog.messages
    warn_if_slow(torch.bfloat16, CPU, 0)
    said = "this processor (AVX2) reckons in bfloat16 about nine times slower than in float32: set `dtype` of the model"
    assert caplog.messages == ([f"{said} to float32"] if width == "AVX2" else [])
