"""What both roles on vLLM share: opening an engine, running one request, counting what it does.

Leaves out what a role means (rollout_vllm, critic_vllm) and where engines run (cluster).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from capo_ray.config.blocks import Rollout
from capo_ray.config.critic import Voter
from capo_ray.config.lora import held_rank
from capo_ray.engines.engine_words import EngineWords
from capo_ray.engines.protocols import Part, WeightsChanged
from capo_ray.engines.vllm_options import as_vllm_takes
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.records.busy import Busy
from capo_ray.types import Metrics, Sampling

BATCHED_TOKENS = 8192
"""Tokens that an engine on GPU computes at once: what vLLM gives its own server on an H100. An engine made in Python
would get 2,048, with which a prompt of a critic takes several rounds."""

ADAPTER = LoRARequest(lora_name="policy", lora_int_id=1, lora_path="none: the trainer sends it")
"""What a request to an engine names that samples from its model with the trainer's adapter."""


def open_engine(settings: VllmSettings) -> AsyncLLM:
    """Start vLLM's engine in a process of its own and wait until the model is loaded. Raises RuntimeError with what its
    process says where it does not start."""
    arguments, words = arguments_of(settings), EngineWords()
    try:
        with _compiled_as_asked(settings):
            return AsyncLLM.from_engine_args(arguments)
    except RuntimeError as error:
        if cause := words.cause():
            raise RuntimeError(f"vLLM's engine did not start: {cause}") from error
        raise


@contextmanager
def _compiled_as_asked(settings: VllmSettings) -> Iterator[None]:
    """An eager engine on CPU compiles nothing. vLLM's `enforce_eager` is about the model alone: the first
    log-probabilities would have the count of a token's rank compiled, 15 seconds of a core for each engine."""
    name = "TORCHDYNAMO_DISABLE"
    if settings.device != "cpu" or not settings.block.eager or name in os.environ:
        yield
        return
    os.environ[name] = "1"  # for the engine's process, which takes what this one has
    try:
        yield
    finally:
        os.environ.pop(name, None)


def arguments_of(settings: VllmSettings) -> AsyncEngineArgs:
    """What vLLM is asked for; starts nothing. Options of the block's `engine` take the place of what is set here."""
    block = settings.block
    given: dict[str, Any] = {
        "model": settings.model,
        "tokenizer": settings.tokenizer,
        "dtype": settings.dtype,
        "seed": 0,
        "max_model_len": settings.window,
        "max_num_seqs": block.max_sequences,
        "tensor_parallel_size": block.tensor_parallel,
        "gpu_memory_utilization": block.gpu_memory_share,
        "enforce_eager": block.eager,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # a model's own sampling defaults must not change what the config says
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    given |= _on_cpu() if settings.device == "cpu" else _on_gpu(block)
    if settings.weight_transfer is not None:
        given |= {
            "weight_transfer_config": {"backend": settings.weight_transfer},
            "worker_extension_cls": "capo_ray.engines.weights_receive.ReceiptExtension",
        }
    if settings.sleeps and settings.device == "cpu":
        given |= {"worker_cls": "capo_ray.engines.cpu_worker.SleepingCpuWorker"}
    elif settings.sleeps:
        given |= {
            "enable_sleep_mode": True,
            "worker_extension_cls": "capo_ray.engines.weights_receive.SleepingExtension",
        }
    if settings.lora_rank is not None:
        given |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": held_rank(settings.lora_rank)}
    return AsyncEngineArgs(**(given | as_vllm_takes(block.engine)))


def _on_cpu() -> dict[str, Any]:
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return {
        # A seeded request whose prompt is cut rewinds its generator, and one on CPU cannot be rewound.
        "enable_chunked_prefill": False,
        # Prefixes are cached in whole blocks, and vLLM's 128 tokens a block are more than most prefixes here.
        "block_size": 32,
        # Named by class: vLLM would replace "uni" by a second process per engine, to set its OpenMP threads.
        "distributed_executor_backend": UniProcExecutor,
        "worker_cls": "capo_ray.engines.cpu_worker.OneLoopCpuWorker",
        "scheduler_cls": "capo_ray.engines.gathering.GatheringScheduler",
    }


def _on_gpu(block: Rollout | Voter) -> dict[str, Any]:
    return {
        # Left to itself vLLM takes Ray in a placement group, and refuses one with all GPUs of an engine in one bundle.
        "distributed_executor_backend": "uni" if block.tensor_parallel == 1 else "mp",
        "max_num_batched_tokens": max(BATCHED_TOKENS, block.max_sequences),
    }


class Sleeps:
    """Of one engine; see protocols.Sleeping."""

    def __init__(self, engine: AsyncLLM, name: str, *, keeps: bool) -> None:
        """`keeps`: whether it is to wake with the weights that it has, for want of a sync that brings all of them."""
        self._engine = engine
        self._name = name
        self._keeps = keeps
        self._held = [""]

    async def sleep(self) -> None:
        if self._keeps:
            self._held = await self._engine.collective_rpc("held_checksum")
        await self._engine.sleep(1 if self._keeps else 2)

    async def wake(self, parts: Collection[Part]) -> None:
        await self._engine.wake_up(list(parts))
        if self._keeps and "weights" in parts and await self._engine.collective_rpc("held_checksum") != self._held:
            raise WeightsChanged(f"{self._name} woke with other weights than it fell asleep with")


class Requests:
    """Runs requests on one engine and counts them."""

    def __init__(self, engine: AsyncLLM, max_sequences: int, adapter: LoRARequest | None = None) -> None:
        """`adapter`: that all of them are computed with."""
        self.engine = engine
        self._adapter = adapter
        self._max_sequences = max_sequences
        self._sequences = 0
        self._numbers = itertools.count()
        self._busy = Busy()
        self._generated = 0
        self._prompt = 0
        self._cached = 0

    async def run(self, token_ids: Sequence[int], parameters: SamplingParams) -> RequestOutput:
        """The finished output of one request; cancelling the caller aborts it. Raises RuntimeError where vLLM gave it
        up, as it does with what is in flight when it falls asleep: what it delivers then is a part."""
        final: RequestOutput | None = None
        prompt: Any = {"prompt_token_ids": list(token_ids)}
        self._sequences += parameters.n
        try:
            with self._busy:
                number = str(next(self._numbers))
                async for output in self.engine.generate(prompt, parameters, number, lora_request=self._adapter):
                    final = output
        except EngineDeadError as error:  # to read vLLM's own error, whoever asked would have to import vLLM
            raise RuntimeError(f"vLLM's engine has ended: {error}") from None
        finally:
            self._sequences -= parameters.n
        if final is None:
            raise RuntimeError("vLLM ended a request without an output")
        if given_up := {str(one.finish_reason) for one in final.outputs} - {"stop", "length"}:
            raise RuntimeError(f"vLLM gave a request up: {', '.join(sorted(given_up))}")
        self._generated += sum(len(completion.token_ids) for completion in final.outputs)
        self._prompt += len(token_ids)
        self._cached += final.num_cached_tokens or 0
        return final

    def metrics(self) -> Metrics:
        """Totals since the start; `busy_s` is the time with at least one request running.

        Sequences beyond the engine's limit wait; that some more do where its KV cache is full is not seen here.
        """
        running = min(self._sequences, self._max_sequences)
        return {
            "generated_tokens": self._generated,
            "prompt_tokens": self._prompt,
            "cached_tokens": self._cached,
            "running": running,
            "waiting": self._sequences - running,
            "busy_s": self._busy.seconds,
        }


def parameters_of(sampling: Sampling, *, seed: int, n: int = 1, logprobs: bool, detokenize: bool) -> SamplingParams:
    return SamplingParams(
        n=n,
        seed=seed,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=max(sampling.top_k, 0),
        logprobs=0 if logprobs else None,
        flat_logprobs=logprobs,
        detokenize=detokenize,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
