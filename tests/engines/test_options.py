"""Options by the libraries' own names: what this project keeps for itself, what the libraries themselves say of the
rest, and who asks them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from capo_ray import launch
from capo_ray.config.block import Block
from capo_ray.config.blocks import Rollout
from capo_ray.config.compose import compose
from capo_ray.config.critic import Voter
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.engines import options
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.sft import __main__ as sft

TINY = "+experiment=tiny_cpu"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.engine.max_model_len=99",
            "rollout.engine: max_model_len is not handed on to vLLM: a critic's is `window`; the policy's is "
            "data.max_prompt_tokens + rollout.max_response_tokens",
        ),
        (
            "critic.engine={data_parallel_rank: 2}",
            "critic.engine: data_parallel_rank is not handed on to vLLM: an engine has the GPUs of its actor, on one "
            "machine: set `tensor_parallel`",
        ),
        (
            "rollout.engine.quantization=fp8",
            "rollout.engine: quantization is not handed on to vLLM: the policy is sampled from as it is trained",
        ),
        (
            "critic.engine.load_format=dummy",
            "critic.engine: load_format dummy is not handed on to vLLM: weights that are made up answer nothing",
        ),
        (
            "trainer.deepspeed.zero_optimization.stage=3",
            "trainer.deepspeed: zero_optimization.stage is not handed on to DeepSpeed: set `zero_stage`",
        ),
        (
            "trainer.deepspeed={zero_optimization:{offload_optimizer:{nvme_path:/disk}}}",
            "trainer.deepspeed: zero_optimization.offload_optimizer.nvme_path is not handed on to DeepSpeed: "
            "checkpoints would lack what it keeps of the optimizer; set `offload` to optimizer, which they hold",
        ),
        (
            "trainer.deepspeed.zero_optimization.offload_param.device=cpu",
            "trainer.deepspeed: zero_optimization.offload_param.device is not handed on to DeepSpeed: set `offload`",
        ),
        ("rollout.engine=3", "rollout.engine: must be a block of keys, got 3"),
    ],
)
def test_what_has_a_setting_here_or_must_not_change_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([TINY, override])
    assert str(error.value) == message


def test_a_critic_without_an_engine_takes_no_options_of_one() -> None:
    with pytest.raises(ConfigError, match=r"`engine` holds options of vLLM's engines, and `kind` truth starts none"):
        compose([TINY, "critic=truth", "critic.engine.block_size=16"])


def test_a_critic_may_be_quantised() -> None:
    config = compose([TINY, "critic.engine={quantization: fp8}"])
    assert config.critic is not None and config.critic.engine == {"quantization": "fp8"}


def test_a_library_that_is_not_here_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda library: None)
    with caplog.at_level(logging.WARNING):
        options.check_options(compose([TINY, "rollout.engine.nonsense=1", "trainer.deepspeed.nonsense=1"]))
    assert caplog.messages == [
        "rollout.engine: not checked, since vllm is not installed here",
        "trainer.deepspeed: not checked, since deepspeed is not installed here",
    ]


def test_nobody_is_asked_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_ask", lambda given: pytest.fail("asked"))
    options.check_options(compose([TINY]))
    options.check_options(compose([TINY, "trainer.deepspeed.nonsense=1"]), trains=False)


@pytest.mark.engine
def test_every_fault_of_a_run_is_said_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By both libraries, in one process of its own."""
    given = [
        f"run_dir={tmp_path / 'run'}",
        "rollout.engine.max_num_batch_tokens=512",
        "critic.engine.max_num_batched_tokens='512'",
        "trainer.deepspeed.zero_optimization.overlap_com=true",
    ]
    expected = (
        "error: rollout.engine.max_num_batch_tokens: vLLM's EngineArgs has no such option; did you mean "
        "max_num_batched_tokens?\n"
        "critic.engine.max_num_batched_tokens: Input should be a valid integer, got '512'\n"
        "trainer.deepspeed.zero_optimization.overlap_com: DeepSpeed has no such option; did you mean overlap_comm?\n"
    )
    for more in ([], ["dry_run=true"]):
        assert launch.main([TINY, *given, *more]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"zero_optimization": {"offload_optimizer": {"pin_memory": True}}, "memory_breakdown": True}, ""),
        (
            {"wall_clock_brakdown": True},
            "wall_clock_brakdown: DeepSpeed has no such option; did you mean wall_clock_breakdown?",
        ),
        (
            {"wall_clock_breakdown": "yes"},
            "wall_clock_breakdown: must be such as DeepSpeed's default False, got 'yes'",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devices": "cpu"}}},
            "zero_optimization.offload_optimizer.devices: DeepSpeed has no such option; did you mean device?",
        ),
        (
            {"zero_optimization": {"overlap_comm": [1]}},
            "zero_optimization: overlap_comm: Input should be a valid boolean, got [1]",
        ),
        (
            {"activation_checkpointing": {"cpu_checkpoint": True}},
            "activation_checkpointing.cpu_checkpoint: DeepSpeed has no such option; did you mean cpu_checkpointing?",
        ),
        ({"aio": {"block_size": "x"}}, "aio.block_size: must be such as DeepSpeed's default 1048576, got 'x'"),
        (
            {"checkpoint": {"tag_validation": "FAI"}},
            "checkpoint: DeepSpeed cannot use this: Checkpoint config contains invalid tag_validation value of FAI, "
            "expecting one of ['WARN', 'IGNORE', 'FAIL']",
        ),
    ],
)
def test_deepspeed_is_asked_for_name_and_type(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from capo_ray.engines.deepspeed_options import check

    try:
        check(given, 2)
        said = ""
    except ValueError as error:
        said = str(error)
    assert said == message


@pytest.mark.engine
def test_supervised_training_takes_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["+experiment=qwen7b_sft", "dry_run=true"]
    assert sft.main([*given, "deepspeed.gradient_cliping=1"]) == 2
    assert "deepspeed.gradient_cliping: DeepSpeed has no such option; did you mean gradient_" in capsys.readouterr().err
    assert sft.main([*given, "deepspeed.gradient_clipping=1"]) == 2
    assert "gradient_clipping is not handed on to DeepSpeed: set `max_grad_norm`" in capsys.readouterr().err


class _Read:
    """A block that remembers which of its settings were asked for."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._block, name)


@pytest.mark.parametrize(
    ("block", "elsewhere"),
    [
        (
            Rollout(max_response_tokens=9),
            {
                **dict.fromkeys(("max_response_tokens", "temperature", "top_p", "top_k"), "each request"),
                "workers": "the plan",
                "kv_cache_gib": "the actor's environment",
            },
        ),
        (
            Voter(model=Model(path="m")),
            {
                **dict.fromkeys(("endpoints", "served_model", "api_key_env", "leave_out"), "engines.critic_http"),
                **dict.fromkeys(("kind", "flag_share", "same_critic"), "training.build_critics"),
                **dict.fromkeys(("model", "window"), "VllmSettings, beside the block"),
                "workers": "the plan",
                "kv_cache_gib": "the actor's environment",
            },
        ),
    ],
    ids=["rollout", "critic"],
)
def test_every_setting_of_an_engine_reaches_vllm_or_somebody_else(block: Block, elsewhere: dict[str, str]) -> None:
    from capo_ray.engines.vllm_engine import arguments_of

    read: Any = _Read(block)
    arguments_of(VllmSettings(block=read, model="m", tokenizer="m", dtype="bfloat16", window=None, device="gpu"))
    assert type(block).model_fields.keys() - read.names - elsewhere.keys() == set(), "reach nobody"
    assert elsewhere.keys() & read.names == set(), "said to be taken elsewhere"
