"""Canaries: which are judged when, how they are asked about, what is counted, and what they leave alone."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asked import asked_with

from capo_ray.cluster.crew import RayCrew
from capo_ray.cluster.parts import CrewSettings
from capo_ray.cluster.turns import AllAwake
from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.credit.critique import Reference, render_reply, unwrap
from capo_ray.critics.canaries import Canary, CanaryJudge, CanarySet
from capo_ray.critics.labelled import Item
from capo_ray.critics.service import Critics
from capo_ray.data.problem import DataError
from capo_ray.engines.protocols import Completion, Message, Replies
from capo_ray.records.tally import rates
from capo_ray.types import Metrics, Prompt, Sampling

STEPS = ("one", "two", "three", "four")
PARTLY = Item(id="partly", question="q", steps=STEPS, labels=(False, True, None, None))
"""As ProcessBench labels: nobody knows of the steps behind the first error."""


@dataclass
class Engine:
    """Flags what `flagged` says of the first step's text; waits for `go`."""

    flagged: dict[str, Sequence[int] | None] = field(default_factory=dict)
    name: str = "engine"
    asked: list[dict[str, Any]] = field(default_factory=list)
    go: asyncio.Event | None = None

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        first = unwrap(messages[-1]["content"])[0]
        self.asked.append({"messages": messages, "sampling": sampling, "n": n, "seed": seed})
        if self.go is not None:
            await self.go.wait()
        flagged = self.flagged.get(first, ())
        text = "no idea" if flagged is None else render_reply(flagged)
        completion = Completion(text=text, truncated=False, num_tokens=7)
        return Replies(completions=(completion,) * n, prompt_tokens=50, cached_tokens=20)

    def metrics(self) -> Metrics:
        return {}


def critics_of(engine: Engine, **more: Any) -> Critics:
    return Critics([engine], asked_with(**({"critiques": 2, "vote": "majority"} | more)))


def judge_of(critics: Critics) -> CanaryJudge:
    return CanaryJudge(critics, reference="solution", vote="majority")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def taken(engine: Engine, *canaries: Canary, critics: Critics | None = None) -> Metrics:
    async def run() -> Metrics:
        judge = judge_of(critics or critics_of(engine))
        judge.begin(canaries)
        await settle()
        return judge.take()

    return asyncio.run(run())


# ---- which ------


def items(count: int) -> list[Item]:
    return [Item(id=str(n), question="q", steps=("a",), labels=(True,)) for n in range(count)]


def test_a_step_has_its_canaries_whenever_it_is_run() -> None:
    """After a resume too: nothing is carried from step to step."""
    made, again = (CanarySet(items(7), seed=3, per_step=2.5) for _ in range(2))
    steps = [made.for_step(step) for step in range(1, 9)]
    assert [again.for_step(step) for step in reversed(range(1, 9))] == steps[::-1]
    other = CanarySet(items(7), seed=4, per_step=2.5)
    assert [other.for_step(step) for step in range(1, 9)] != steps


def test_the_rate_is_kept_over_steps() -> None:
    made = CanarySet(items(5), seed=0, per_step=0.3)
    assert [len(made.for_step(step)) for step in range(1, 11)] == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    assert sum(len(CanarySet(items(5), seed=0, per_step=5.12).for_step(step)) for step in range(1, 101)) == 512


def test_all_come_before_one_comes_again_and_then_with_other_critiques() -> None:
    made = CanarySet(items(6), seed=0, per_step=4)
    canaries = [canary for step in (1, 2, 3) for canary in made.for_step(step)]
    first, second = canaries[:6], canaries[6:]
    assert {canary.item.id for canary in first} == {canary.item.id for canary in second} == set("012345")
    assert len({canary.seed for canary in canaries}) == 12
    assert [canary.item.id for canary in first] != [canary.item.id for canary in second]


# ---- how they are asked about, and what is counted ------


def test_they_are_asked_about_as_responses_are() -> None:
    """The same words, number, seeds and rounds."""
    engine = Engine({"one": [1]})
    critics = critics_of(engine, critiques=4, adaptive=True, vote="strict_majority", full_share=0.0)
    item = Item(id="i", question="q?", steps=STEPS, labels=(False, True, False, False), solution="it is so")
    response = asyncio.run(critics.judge("q?", Reference("solution", "it is so"), STEPS, response_key="r", seed=11))
    assert [critique.wrong_steps for critique in response[:2]] == [(1,), (1,)]
    as_response, engine.asked = engine.asked, []
    taken(engine, Canary(item, 11), critics=critics)
    assert engine.asked == as_response and len(as_response) == 2


@pytest.mark.parametrize(
    ("solution", "answer", "shown"), [("so", "5", "it is so"), ("", "5", "seven"), (" ", "5", "seven"), ("", "", None)]
)
def test_they_are_shown_no_better_reference_than_the_runs_problems_have(
    solution: str, answer: str, shown: str | None
) -> None:
    """A critic with a worked solution in front of it says little of one without."""
    engine = Engine({"one": [1]})
    item = Item(id="i", question="q?", steps=STEPS, labels=(False,) * 4, solution="it is so", answer="seven")
    prompt = Prompt(id="p", question="?", token_ids=(1,), answer=answer, solution=solution)
    (canary,) = CanarySet([item], seed=0, per_step=1).for_step(1, [prompt])
    taken(engine, canary)
    told = engine.asked[0]["messages"][-1]["content"]
    assert [text for text in ("it is so", "seven") if text in told] == ([shown] if shown else [])


def test_where_some_problems_have_a_solution_some_canaries_are_shown_theirs() -> None:
    prompts = [Prompt(id=str(n), question="?", token_ids=(1,), answer="5", solution="so" * (n % 2)) for n in range(4)]
    made = CanarySet(items(9), seed=0, per_step=4).for_step(1, prompts)
    assert sorted(canary.most for canary in made) == ["answer", "answer", "solution", "solution"]


def test_the_runs_own_choice_of_a_reference_is_the_limit() -> None:
    engine = Engine()
    item = Item(id="i", question="q?", steps=STEPS, labels=(True,) * 4, solution="it is so", answer="seven")

    async def scene() -> None:
        judge = CanaryJudge(critics_of(engine), reference="answer", vote="majority")
        judge.begin([Canary(item, 1)])
        await settle()

    asyncio.run(scene())
    assert "seven" in str(engine.asked[0]["messages"]) and "it is so" not in str(engine.asked[0]["messages"])


def test_precision_and_recall_are_over_the_steps_whose_label_is_known() -> None:
    engine = Engine({"one": [0, 1, 3]})
    got = taken(engine, Canary(PARTLY, 1))
    assert (got["canary_hits"], got["canary_flagged"], got["canary_wrong"]) == (1, 2, 1)
    assert rates(got) == {
        "critic/canary_precision": 0.5, "critic/canary_recall": 1.0, "critic/canary_valid_share": 1.0,
        "critic/canary_flagged_step_share": 0.75, "critic/canary_false_alarm_share": 1.0,
    }  # fmt: skip
    assert (got["canaries"], got["canary_tokens"]) == (1, 14)


def test_an_unjudged_canary_is_in_the_valid_share_alone() -> None:
    lost = Item(id="lost", question="q", steps=("lost", "two"), labels=(True, False))
    got = taken(Engine({"lost": None, "one": [1]}), Canary(lost, 1), Canary(PARTLY, 5))
    assert rates(got) == {
        "critic/canary_precision": 1.0, "critic/canary_recall": 1.0, "critic/canary_valid_share": 0.5,
        "critic/canary_flagged_step_share": 0.25, "critic/canary_false_alarm_share": 0.0,
    }  # fmt: skip
    assert got["canaries"] == 2


def test_they_leave_what_is_counted_of_responses_alone() -> None:
    engine = Engine({"one": None})
    critics = critics_of(engine, cache=9)
    before = critics.metrics()
    got = taken(engine, *[Canary(PARTLY, seed) for seed in (1, 9, 1)], critics=critics)
    assert (got["canaries"], got["canary_valid_critiques"], got["canary_finished_critiques"]) == (3, 0, 6)
    assert critics.metrics() == before  # nor have their failures stopped anything
    assert [asked["seed"] for asked in engine.asked] == [1, 9, 1]  # never from the cache
    engine.flagged["one"] = []
    asyncio.run(critics.judge("q", Reference("none"), STEPS, response_key="r", seed=1))
    assert len(engine.asked) == 4  # nor is a response
    assert critics.metrics()["responses"] == 1


# ---- nothing waits ------


def test_one_that_is_in_flight_counts_when_it_is_done() -> None:
    async def run() -> None:
        engine = Engine({"one": [1]}, go=asyncio.Event())
        judge = judge_of(critics_of(engine))
        judge.begin([Canary(PARTLY, 1)])
        await settle()
        assert judge.take() == {} and len(engine.asked) == 1
        assert engine.go is not None
        engine.go.set()
        await settle()
        assert judge.take()["canaries"] == 1
        assert judge.take() == {}

    asyncio.run(run())


def test_those_in_flight_at_the_end_are_given_up() -> None:
    async def run() -> None:
        engine = Engine(go=asyncio.Event())
        judge = judge_of(critics_of(engine))
        judge.begin([Canary(PARTLY, 1), Canary(PARTLY, 2)])
        await settle()
        await judge.end()
        assert judge.take() == {}
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_one_that_no_critic_was_up_for_stops_no_run(caplog: pytest.LogCaptureFixture) -> None:
    """It is counted as one that nothing is known of; the responses say whether the run can go on."""

    async def scene() -> Metrics:
        engine = Engine(name="dead")
        engine.go = asyncio.Event()
        critics = critics_of(engine, attempts=1, break_after=1, deadline_s=0.01, outage_limit_s=0.02)
        canaries = judge_of(critics)
        canaries.begin([Canary(PARTLY, 1)])
        await asyncio.sleep(0.3)
        metrics = canaries.take()
        canaries.begin([Canary(PARTLY, 2)])
        await asyncio.sleep(0.3)
        assert "a canary was not judged: " in caplog.text
        assert "(critic.outage_limit_s)" in caplog.text
        return metrics | {"second": canaries.take()["canaries"]}

    metrics = asyncio.run(scene())
    assert (metrics["canaries"], metrics["second"]) == (1, 1)
    assert metrics["canary_wrong"] == metrics["canary_flagged"] == metrics["canary_tokens"] == 0


def test_an_error_is_raised_when_they_are_counted() -> None:
    class Broken:
        def apart(self) -> "Broken":
            return self

        async def judge(self, *asked: Any, **more: Any) -> None:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        taken(Engine(), Canary(PARTLY, 1), critics=Broken())  # type: ignore[arg-type]


class Shard:
    """Keeps what it is to begin."""

    def __init__(self) -> None:
        self.begun: list[Canary] = []
        self.begin_canaries = SimpleNamespace(remote=self._begin)

    async def _begin(self, canaries: Sequence[Canary]) -> None:
        self.begun += canaries


def test_a_batch_begins_those_of_its_step_over_all_shards() -> None:
    made = CanarySet(items(20), seed=0, per_step=5)
    shards = [Shard(), Shard(), Shard()]
    parts: Any = SimpleNamespace(
        workers=[],
        aggregators=shards,
        prompts_for=lambda step, attempt: [],
        canaries_for=made.for_step,
        budget=None,
        score_ahead=None,
        turns=AllAwake(),
    )
    settings = CrewSettings(
        seed=0, responses_per_prompt=2, sampling=Sampling(max_tokens=1), max_dropped_share=1.0, refills=0,
        samples_per_step=0,
    )  # fmt: skip
    asyncio.run(RayCrew(parts, settings).collect(3))
    assert sorted(len(shard.begun) for shard in shards) == [1, 2, 2]
    assert Counter(canary.seed for shard in shards for canary in shard.begun) == Counter(
        canary.seed for canary in made.for_step(3)
    )


# ---- where they come from ------


def configured(source: object, *more: str) -> Config:
    return compose(["+experiment=tiny_cpu", f"critic.canaries.source={source}", "critic.canaries.rate=0.05", *more])


def test_none_without_a_source() -> None:
    assert CanarySet.of(compose(["+experiment=tiny_cpu", "critic.canaries=null"])).for_step(1) == []
    without = compose(["+experiment=tiny_cpu", "critic=null", "algorithm.advantage=grpo"])
    assert CanarySet.of(without).for_step(1) == []


def test_the_tiny_world_has_some_with_wrong_steps() -> None:
    canaries = CanarySet.of(configured("arithmetic")).for_step(1)
    assert len(canaries) == round(0.05 * 16 * 16)
    assert all(True in canary.item.labels and canary.item.solution for canary in canaries)
    assert len({canary.item.question for canary in canaries}) == len(canaries)


def record(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "problem": "1 + 1?", "steps": ["it is 3", "so 3"], "label": 0} | changes


def written(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "canaries.jsonl"
    path.write_text("".join(json.dumps(given) + "\n" for given in records))
    return path


def test_a_file_in_the_layout_of_processbench(tmp_path: Path) -> None:
    path = written(tmp_path, record(), record(id="b", label=-1))
    canaries = CanarySet.of(configured(path)).for_step(1)
    assert Counter(canary.item.labels for canary in canaries) == {(True, None): 7, (False, False): 6}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (None, "critic.canaries.source: there is no file {path}"),
        ([], "critic.canaries.source: {path} is empty"),
        (
            [record(), record(id="b", label=None)],
            "{path}, line 2: `label` must be the first wrong step, from 0, or -1 for none; got None",
        ),
        (
            [record(label=-1)],
            "critic.canaries.source: no response in {path} has a wrong step (`label` is -1 in all 1), so nothing could "
            "be said of recall; name a file with wrong ones",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, records: list[dict[str, Any]] | None, message: str
) -> None:
    path = tmp_path / "canaries.jsonl" if records is None else written(tmp_path, *records)
    with pytest.raises(DataError) as caught:
        CanarySet.of(configured(path))
    assert str(caught.value) == message.format(path=path)
