"""A request's tokens go to the process in front in few parts, which hold what vLLM alone would have handed on."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists

from capo_ray.engines import gathering
from capo_ray.engines.gathering import GatheringScheduler

WHOLE = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)


def token(name: str, value: int, *, last: bool = False, **more: Any) -> EngineCoreOutput:
    logprobs = LogprobsLists(
        np.array([[value]], dtype=np.int32), np.array([[-value / 8]], dtype=np.float32), np.array([value + 1])
    )
    reason = FinishReason.STOP if last else None
    return EngineCoreOutput(name, [value], new_logprobs=logprobs, finish_reason=reason, **more)


def handed_on(
    monkeypatch: pytest.MonkeyPatch, steps: Sequence[Sequence[EngineCoreOutput]], **asked: SamplingParams
) -> tuple[list[list[EngineCoreOutput]], GatheringScheduler]:
    """By step, of what vLLM's scheduler would hand on itself; `asked`: requests that are under way."""
    coming = iter(steps)
    monkeypatch.setattr(
        Scheduler, "update_from_output", lambda *given: {0: EngineCoreOutputs(outputs=list(next(coming)))}
    )
    scheduler = GatheringScheduler.__new__(GatheringScheduler)
    scheduler._waiting_outputs = {}
    scheduler.requests = {name: SimpleNamespace(sampling_params=one) for name, one in asked.items()}  # type: ignore[misc]
    made = [scheduler.update_from_output(None, None) for _ in steps]
    assert all(answers.keys() <= {0} for answers in made)
    return [answers[0].outputs if answers else [] for answers in made], scheduler


def test_a_response_comes_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = PrefillStats(num_cached_tokens=32)
    steps = [
        [token("a", 1, prefill_stats=stats), token("b", 7)],
        [token("a", 2), token("b", 8, last=True)],
        [token("a", 3, last=True)],
    ]
    none, (b,), (a,) = handed_on(monkeypatch, steps, a=WHOLE, b=WHOLE)[0]
    assert none == []
    assert (b.request_id, b.new_token_ids, b.finish_reason) == ("b", [7, 8], FinishReason.STOP)
    assert (a.new_token_ids, a.prefill_stats) == ([1, 2, 3], stats)
    assert a.new_logprobs is not None
    assert a.new_logprobs.logprob_token_ids.tolist() == [[1], [2], [3]]
    assert a.new_logprobs.logprobs.tolist() == [[-0.125], [-0.25], [-0.375]]
    assert a.new_logprobs.sampled_token_ranks.tolist() == [2, 3, 4]


def test_a_long_one_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MOST", 2)
    steps = [[token("a", value, last=value == 5)] for value in range(1, 6)]
    made, scheduler = handed_on(monkeypatch, steps, a=WHOLE)
    assert [[output.new_token_ids for output in step] for step in made] == [[], [[1, 2]], [], [[3, 4]], [[5]]]
    assert scheduler._waiting_outputs == {}


@pytest.mark.parametrize(
    "asked",
    [
        SamplingParams(output_kind=RequestOutputKind.DELTA),
        SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, stop=["end"]),
    ],
    ids=["streamed", "until a word"],
)
def test_others_come_as_they_are_sampled(monkeypatch: pytest.MonkeyPatch, asked: SamplingParams) -> None:
    made, _ = handed_on(monkeypatch, [[token("a", 1)], [token("a", 2, last=True)]], a=asked)
    assert [[output.new_token_ids for output in step] for step in made] == [[[1]], [[2]]]


def test_one_that_fails_comes_with_what_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR)
    (_, (one,)), _ = handed_on(monkeypatch, [[token("a", 1)], [failed]], a=WHOLE)
    assert (one.new_token_ids, one.finish_reason) == ([1], FinishReason.ERROR)


def test_of_one_that_was_aborted_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "update_from_output", lambda *given: {0: EngineCoreOutputs(outputs=[token("b", 1)])})
    scheduler = GatheringScheduler.__new__(GatheringScheduler)
    scheduler._waiting_outputs = {"a": [token("a", 1)]}
    scheduler.requests = {"b": SimpleNamespace(sampling_params=WHOLE)}  # type: ignore[dict-item]
    scheduler.update_from_output(None, None)
    assert scheduler._waiting_outputs.keys() == {"b"}
