"""Options that are handed on to vLLM and DeepSpeed by the libraries' own names, and the ones that are not to be.

What has a setting of its own, or is what this project's figures rest on, is refused here, wherever the libraries are.
Leaves out whether a library has an option of that name and type, which the library itself is asked (`engines.options`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

Options = Mapping[str, Any]

_MODEL = "the model is loaded as it was found: set `path`, `tokenizer` and `dtype` of the model"
_GPUS = "an engine has the GPUs of its actor, on one machine: set `tensor_parallel`"
_SAMPLING = "the distribution that is sampled from is set by temperature, top_p and top_k, and by nothing else"
_WEIGHTS = "weights come as `cluster.sharing` has it, and an engine confirms what it received"
_LORA = "the policy's adapter is `trainer.lora`, and reaches engines as `cluster.lora_sync` says"
_POLICY = "the policy is sampled from as it is trained"
_BATCHES = "set responses_per_update or sequences_per_update, and tokens_per_micro_batch"
_PRECISION = "set `dtype` of the model; gradients are summed in float32"
_STEP = "the optimizer is AdamW: set learning_rate, schedule, warmup_steps, final_lr_share, weight_decay and betas"
_STATE = "checkpoints would lack what it keeps of the optimizer; set `offload` to optimizer, which they hold"
_OFFLOAD = "set `offload`"
_RANKS = "ranks share one policy's data, and nothing else is split: set `ranks` and `zero_stage`"

OF_ENGINES: dict[str, str] = {
    **dict.fromkeys(("model", "model_weights", "tokenizer", "dtype", "hf_config_path", "skip_tokenizer_init"), _MODEL),
    **dict.fromkeys(("revision", "code_revision", "tokenizer_revision", "tokenizer_mode"), _MODEL),
    **dict.fromkeys(("runner", "convert", "model_class_overrides"), _MODEL),
    "max_model_len": "a critic's is `window`; the policy's is data.max_prompt_tokens + rollout.max_response_tokens",
    "max_num_seqs": "set `max_sequences`",
    "gpu_memory_utilization": "set `gpu_memory_share`",
    "enforce_eager": "set `eager`",
    "enable_sleep_mode": "engines sleep where `cluster.sharing` is turns",
    "seed": "each request has its own, a function of the run's `seed`",
    "hf_token": "this configuration is written down; set HF_TOKEN in the environment",
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size"), _GPUS),
    **dict.fromkeys(("distributed_executor_backend", "device_ids", "worker_cls"), _GPUS),
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port"), _GPUS),
    **dict.fromkeys(("logprobs_mode", "generation_config", "override_generation_config"), _SAMPLING),
    "logits_processors": _SAMPLING,
    **dict.fromkeys(("weight_transfer_config", "worker_extension_cls"), _WEIGHTS),
}
"""Field of vLLM's EngineArgs -> why it is not handed on."""
OF_ROLLOUTS = {
    **OF_ENGINES,
    **dict.fromkeys(("quantization", "quantization_config", "hf_overrides"), _POLICY),
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype"), _LORA),
    "lora_target_modules": _LORA,
}
OF_DEEPSPEED: dict[str, str] = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), _BATCHES),
    **dict.fromkeys(("managed_gradient_accumulation", "elasticity", "autotuning", "data_efficiency"), _BATCHES),
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "amp", "torch_autocast", "data_types"), _PRECISION),
    **dict.fromkeys(("optimizer", "scheduler", "zero_allow_untested_optimizer"), _STEP),
    "gradient_clipping": "set `max_grad_norm`",
    "gradient_allreduce_op": "losses are scaled for the mean over ranks",
    "zero_optimization.stage": "set `zero_stage`",
    "zero_optimization.offload_optimizer.device": _OFFLOAD,
    "zero_optimization.offload_param.device": _OFFLOAD,
    "zero_force_ds_cpu_optimizer": _OFFLOAD,
    "zero_optimization.compute_grad_norm": "whether a step is taken depends on it",
    "zero_optimization.zenflow": _STATE,
    "zero_optimization.offload_optimizer.super_offload": _STATE,
    "zero_optimization.offload_optimizer.nvme_path": _STATE,
    **dict.fromkeys(("tensor_parallel", "expert_parallel", "sequence_parallel_size", "pipeline"), _RANKS),
    "hybrid_engine": "rollouts are vLLM's",
}
"""Key of DeepSpeed's configuration -> why it is not handed on."""


def _refusal(library: str, owned: Mapping[str, str], prefixes: tuple[str, ...] = ()) -> Callable[[Options], Options]:
    def refuse(given: Options) -> Options:
        for name, value in given.items():
            for full in (name, *_inside(name, value)):
                reason = owned.get(full) or (_GPUS if full.startswith(prefixes) else "")
                if reason:
                    raise ValueError(f"{full} is not handed on to {library}: {reason}")
        if given.get("load_format") == "dummy":
            raise ValueError(
                f"load_format dummy is not handed on to {library}: weights that are made up answer nothing"
            )
        return given

    return refuse


def _inside(name: str, value: Any) -> Iterator[str]:
    """Full names of all options in a block."""
    for inner, below in value.items() if isinstance(value, dict) else ():
        yield f"{name}.{inner}"
        yield from _inside(f"{name}.{inner}", below)


RolloutOptions = Annotated[dict[str, Any], AfterValidator(_refusal("vLLM", OF_ROLLOUTS, prefixes=("data_parallel_",)))]
CriticOptions = Annotated[dict[str, Any], AfterValidator(_refusal("vLLM", OF_ENGINES, prefixes=("data_parallel_",)))]
DeepSpeedOptions = Annotated[dict[str, Any], AfterValidator(_refusal("DeepSpeed", OF_DEEPSPEED))]


def merged(own: Mapping[str, Any], given: Options) -> dict[str, Any]:
    """`own` with what is `given` in its place; mappings inside are merged too."""
    result = dict(own)
    for name, value in given.items():
        before = result.get(name)
        result[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result
