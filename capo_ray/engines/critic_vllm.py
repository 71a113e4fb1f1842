"""Critics on vLLM: completes conversations with a frozen model.

The marks of a critic's thoughts reach the reply: special tokens are kept where the vocabulary has such marks, and a
thought that the chat template opens is opened in the reply. Leaves out what is asked and how replies are read (credit),
and which engine is asked when (critics).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from capo_ray.credit.thoughts import is_mark, open_mark
from capo_ray.engines.protocols import Completion, Message, Part, PromptTooLong, Replies
from capo_ray.engines.vllm_engine import Requests, Sleeps, open_engine, parameters_of
from capo_ray.engines.vllm_settings import VllmSettings
from capo_ray.types import Metrics, Sampling

_END = 32
"""Tokens at the end of a prompt among which a mark of thoughts is looked for."""


def has_special_marks(tokenizer: Any) -> bool:
    """Whether vLLM would drop the marks of thoughts from a text, since they are special tokens."""
    return any(token.special and is_mark(token.content) for token in tokenizer.added_tokens_decoder.values())


class Conversations:
    """Completes them with an engine's model as it was loaded, without any adapter."""

    def __init__(self, engine: AsyncLLM, settings: VllmSettings, name: str) -> None:
        self._name = name
        self._engine = engine
        self._requests = Requests(engine, settings.block.max_sequences)
        tokenizer = engine.get_tokenizer()
        self._template = settings.chat_template or getattr(tokenizer, "chat_template", None)
        if tokenizer is None or not self._template:
            raise ValueError(
                f"the critic's tokenizer {settings.tokenizer} has no chat template; use an instruction-tuned model"
            )
        self._tokenizer = tokenizer
        self._keeps_special = has_special_marks(tokenizer)

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        token_ids = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        window = self._engine.model_config.max_model_len
        if len(token_ids) + sampling.max_tokens > window:
            raise PromptTooLong(
                f"{len(token_ids)} prompt tokens and {sampling.max_tokens} for the critique are more than the window "
                f"of {window} of {self._name}"
            )
        parameters = parameters_of(sampling, seed=seed, n=n, logprobs=False, detokenize=True)
        parameters.skip_special_tokens = not self._keeps_special
        output = await self._requests.run(token_ids, parameters)
        opened = open_mark(self._tokenizer.decode(token_ids[-_END:]))
        return Replies(
            completions=tuple(
                Completion(
                    text=opened + completion.text,
                    truncated=completion.finish_reason == "length",
                    num_tokens=len(completion.token_ids),
                )
                for completion in output.outputs
            ),
            prompt_tokens=len(token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )

    def metrics(self) -> Metrics:
        return self._requests.metrics()


class VllmCritic:
    """See protocols.CriticEngine."""

    def __init__(self, settings: VllmSettings, *, name: str) -> None:
        self.name = name
        self._engine = open_engine(settings)
        self._conversations = Conversations(self._engine, settings, name)
        self._sleeps = Sleeps(self._engine, name, keeps=True)
        self._closed = False

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        return await self._conversations.complete(messages, sampling, n=n, seed=seed)

    async def sleep(self) -> None:
        await self._sleeps.sleep()

    async def wake(self, parts: Collection[Part]) -> None:
        await self._sleeps.wake(parts)

    def metrics(self) -> Metrics:
        return self._conversations.metrics()

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
