"""A critic's quantization is what its model's files hold, or the plan says that vLLM would refuse the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capo_ray.config.compose import compose
from capo_ray.planning.plan import plan_for

PAPER = "+experiment=qwen1_5b_intersection"
SMALL = "+size=one_gpu_24gb"
PLAIN = "critic.model.path=Qwen/Qwen2.5-7B-Instruct"


def faults(*given: str) -> list[str]:
    return [
        fault for fault in plan_for(compose([PAPER, SMALL, *given]), gpu_gib=22.5).faults if "quantization" in fault
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), None),
        (("critic.engine.quantization=awq_marlin",), None),
        (("critic.engine.quantization=null",), None),
        ((PLAIN, "critic.engine.quantization=fp8_per_tensor"), None),
        (("critic.model.path=other/Seven", "critic.engine.quantization=fp8"), None),  # nobody here knows
        (
            ("critic.engine.quantization=fp8_per_tensor",),
            "it wants weights that are not quantised in the model's files, and those of Qwen/Qwen2.5-7B-Instruct-AWQ "
            "hold awq: leave `quantization` out, since vLLM sees what they hold, or name another critic.model",
        ),
        (
            (PLAIN,),
            "it wants awq in the model's files, and those of Qwen/Qwen2.5-7B-Instruct hold weights that are not "
            "quantised: take fp8_per_tensor, leave `quantization` out, or name a critic.model that is quantised",
        ),
        (
            (PLAIN, "critic.engine.quantization=fp8"),
            "it wants fp8 in the model's files, and those of Qwen/Qwen2.5-7B-Instruct hold weights",
        ),
    ],
)
def test_by_name(given: tuple[str, ...], said: str | None) -> None:
    found = faults(*given)
    assert (
        (len(found) == 1 and said in found[0] and found[0].startswith("critic.engine.quantization="))
        if said
        else (found == [])
    )


def test_by_the_files_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "critic-awq"
    folder.mkdir()
    path = f"critic.model.path={folder}"
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert faults(path, "critic.engine.quantization=gptq_marlin") == []
    assert "those of " + str(folder) + " hold gptq" in faults(path)[0]
    (folder / "config.json").write_text(json.dumps({}))
    assert "hold weights that are not quantised" in faults(path)[0]


def test_an_entry_that_has_its_shape_from_another_keeps_it() -> None:
    """Named by its path or as a group, with another model beneath."""
    for given in ("critic.model.path=Qwen/Qwen2.5-7B-Instruct-AWQ", "model@critic.model=qwen2_5_7b_instruct_awq"):
        critic = compose([PAPER, "+size=one_gpu_80gb", given]).critic
        assert critic is not None and critic.model is not None and critic.model.shape is not None
        assert critic.model.shape.layers == 28
