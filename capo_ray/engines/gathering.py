"""vLLM's scheduler, which gathers what is sampled of a request before it hands it on.

By itself vLLM hands on every token as it is sampled: its engine's process packs and sends each with its
log-probability, and the process in front unpacks it and adds it to the others of its request. Whoever wants whole
responses (`RequestOutputKind.FINAL_ONLY`) sees none of that. So theirs go in parts of `MOST` tokens, the last when the
response is done: the same tokens and numbers, for less work at both ends. Leaves out what is scheduled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import LogprobsLists

MOST = 64
"""Outputs of a request that wait, a token each. They are some 1 KB each, of all requests at once."""


class GatheringScheduler(Scheduler):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._waiting_outputs: dict[str, list[EngineCoreOutput]] = {}

    def update_from_output(self, *given: Any) -> Any:
        """By client, as vLLM has it; a client for whom nothing is ready is left out."""
        made = super().update_from_output(*given)
        for answers in made.values():
            answers.outputs = list(self._ready(answers.outputs))
        if len(self._waiting_outputs) > len(self.requests):  # of some that were aborted
            known = self.requests
            self._waiting_outputs = {name: parts for name, parts in self._waiting_outputs.items() if name in known}
        return {
            client: answers
            for client, answers in made.items()
            if answers.outputs or answers.scheduler_stats or answers.finished_requests
        }

    def _ready(self, outputs: Iterable[EngineCoreOutput]) -> Iterable[EngineCoreOutput]:
        for output in outputs:
            parts = self._waiting_outputs.pop(output.request_id, [])
            parts.append(output)
            if len(parts) < MOST and self._may_wait(output):
                self._waiting_outputs[output.request_id] = parts
            else:
                yield joined(parts)

    def _may_wait(self, output: EngineCoreOutput) -> bool:
        """Of a text that is to stop at a word, every token is looked at as it comes."""
        request = self.requests.get(output.request_id)
        asked = request.sampling_params if request else None
        return (
            asked is not None
            and asked.output_kind is RequestOutputKind.FINAL_ONLY
            and not asked.stop
            and output.finish_reason is None
            and output.new_prompt_logprobs_tensors is None
            and output.new_sampling_mask is None
            and output.routed_experts is None
        )


def joined(parts: Sequence[EngineCoreOutput]) -> EngineCoreOutput:
    """One output with the tokens of all, in their order, of one request. Of the rest it has what the last one says, and
    what only the first one does: how much of the prompt was cached."""
    first, last = parts[0], parts[-1]
    if first is last:
        return last
    last.prefill_stats = first.prefill_stats
    last.new_token_ids = list(chain.from_iterable(part.new_token_ids for part in parts))
    known = [part.new_logprobs for part in parts if part.new_logprobs is not None]
    if known:
        last.new_logprobs = LogprobsLists(*(np.concatenate(rows) for rows in list(zip(*known, strict=True))[:3]))
    return last
