"""Rollouts on vLLM: samples from the policy, with log-probabilities and the policy version, and takes new weights.

Text and token starts come from the sampled ids (credit.tokens), never from vLLM's own text. Leaves out which worker
gets which prompt (cluster.rollout_pool) and when weights may move (cluster.gate).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.outputs import CompletionOutput

from capo_ray.credit.thoughts import open_mark
from capo_ray.credit.tokens import TokenTable
from capo_ray.engines.critic_vllm import Conversations
from capo_ray.engines.protocols import Message, Part, PromptTooLong, Replies, Stage, WeightReceipt
from capo_ray.engines.vllm_engine import ADAPTER, Requests, Sleeps, open_engine, parameters_of
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.types import Finish, Metrics, Prompt, Rollout, Sampling

_END = 32
"""Tokens at the end of a prompt among which a mark of thoughts is looked for."""
FINISH: dict[str | None, Finish] = {"stop": "stop", "length": "length"}


class VllmRollout:
    """See protocols.RolloutEngine."""

    def __init__(self, settings: VllmSettings, *, name: str) -> None:
        self.name = name
        self.version = -1
        """-1 until the first sync: nothing may be sampled from weights that the trainer did not send."""
        self._engine = open_engine(settings)
        self._adapted = settings.lora_rank is not None
        adapter = ADAPTER if self._adapted else None
        self._requests = Requests(self._engine, settings.block.max_sequences, adapter)
        self._sleeps = Sleeps(self._engine, name, keeps=self._adapted)
        self._conversations = Conversations(self._engine, settings, name) if settings.judges else None
        self._closed = False
        self._table = TokenTable.load(settings.tokenizer)

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        window = self._engine.model_config.max_model_len
        if len(prompt.token_ids) + sampling.max_tokens > window:
            raise PromptTooLong(
                f"prompt {prompt.id!r} has {len(prompt.token_ids)} tokens and {sampling.max_tokens} may be sampled: "
                f"more than the policy's window of {window}"
            )
        tasks = [asyncio.create_task(self._one(prompt, sampling, index, seed)) for index, seed in seeds.items()]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, prompt: Prompt, sampling: Sampling, index: int, seed: int) -> Rollout:
        version = self.version
        parameters = parameters_of(sampling, seed=seed, logprobs=True, detokenize=False)
        output = await self._requests.run(prompt.token_ids, parameters)
        return self._rollout(prompt, index, output.outputs[0], tuple(sorted({version, self.version})))

    def _rollout(self, prompt: Prompt, index: int, output: CompletionOutput, versions: tuple[int, ...]) -> Rollout:
        token_ids = tuple(output.token_ids)
        text, char_ends = self._table.decode(token_ids)
        return Rollout(
            prompt_id=prompt.id,
            index=index,
            text=text,
            finish=FINISH[output.finish_reason],
            token_ids=token_ids,
            logprobs=_sampled_logprobs(output.logprobs, token_ids),
            char_ends=char_ends,
            versions=versions,
            opened=open_mark(self._table.decode(prompt.token_ids[-_END:])[0]),
        )

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        """As a critic that is the base model. Not while it samples: on a CPU vLLM 0.32 takes the adapter for all of a
        batch in which one request wants it. What is cached with the adapter it keeps apart from what is without."""
        assert self._conversations is not None, "this engine was not started to judge"
        return await self._conversations.complete(messages, sampling, n=n, seed=seed)

    def judging(self) -> Metrics:
        """Totals of that."""
        return self._conversations.metrics() if self._conversations else {}

    async def sleep(self) -> None:
        await self._sleeps.sleep()

    async def wake(self, parts: Collection[Part]) -> None:
        await self._sleeps.wake(parts)

    async def take_weights(self, stage: Stage, given: Mapping[str, Any]) -> WeightReceipt | None:
        if stage == "greet":
            await self._engine.collective_rpc("weight_checksum")
        elif stage == "connect":
            await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=dict(given)))
        elif stage == "start":
            await self._engine.start_weight_update()
        elif stage == "update":
            await self._engine.update_weights(WeightTransferUpdateRequest(update_info=dict(given)))
        else:
            return await self._finish(given["version"])
        return None

    async def _finish(self, version: int) -> WeightReceipt:
        """Take the new weights into use: what was cached under the old ones is forgotten, or the sync has failed."""
        await self._engine.finish_weight_update(str(version))
        if self._adapted:
            await self._engine.collective_rpc("take_up_adapter")
        if not await self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError(
                f"{self.name}: vLLM kept its prefix cache after a sync: old keys and values would be used"
            )
        self.version = version
        checksums = set(await self._engine.collective_rpc("weight_checksum"))
        return WeightReceipt(engine=self.name, version=version, checksum="+".join(sorted(checksums)))

    def metrics(self) -> Metrics:
        return self._requests.metrics()

    @property
    def dead(self) -> bool:
        """Whether vLLM's own process ended without having been told to."""
        return self._engine.errored and not self._closed

    async def pulse(self) -> None:
        """Returns between two steps of vLLM's own process, which answers this like any request."""
        await self._engine.is_sleeping()

    def close(self) -> None:
        self._closed = True
        self._engine.shutdown()


def _sampled_logprobs(logprobs: Any, token_ids: tuple[int, ...]) -> tuple[float, ...]:
    """The log-probability of each sampled token. With `logprobs=0` vLLM returns that one alone, in flat lists."""
    if len(logprobs.logprobs) != len(token_ids) or tuple(logprobs.token_ids) != token_ids:
        raise RuntimeError(
            f"vLLM returned {len(logprobs.logprobs)} log-probabilities for {len(token_ids)} sampled tokens"
        )
    return tuple(logprobs.logprobs)
