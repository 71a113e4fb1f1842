"""One shard of the reward aggregator: from responses to what is trained on and what is written down."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from asked import asked_with
from responses import END, response

from capo_ray.cluster.aggregator import Aggregator, AggregatorParts
from capo_ray.credit.critique import render_reply, unwrap
from capo_ray.credit.group import Scheme
from capo_ray.credit.steps import BLANK_LINE
from capo_ray.critics.budget import Sampled
from capo_ray.critics.service import Critics
from capo_ray.engines.protocols import Completion, Message, Replies
from capo_ray.records.ledger import Ledger, read
from capo_ray.records.tally import Truth
from capo_ray.seeds import seed_of
from capo_ray.types import Answer, GroupSummary, Metrics, Prompt, Rollout, Sampling, Verification

PROMPT = Prompt(id="p@3", question="What is 6 x 7?", token_ids=(5, 6, 7), answer="42", solution="6 x 7 = 42.")
GOOD = ("fine\n\n", "so 42")
FLAWED = ("a slip\n\n", "so 42")
LOST = ("fine\n\n", "a slip\n\n", "so 41")
ODD = ("how long ", "is this?")


CAPO = Scheme(vote="intersection", outcome_weight=2, process_weight=1)


@dataclass
class Critic:
    """Calls every step wrong that holds a slip; replies to "how long" with nonsense."""

    name: str = "critic"
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        steps = unwrap(messages[-1]["content"])
        self.asked.append({"steps": steps, "seed": seed, "text": messages[-1]["content"], "sampling": sampling})
        text = render_reply(s for s, step in enumerate(steps) if "slip" in step)
        if any("how long" in step for step in steps):
            text = "no idea"
        return Replies(
            completions=(Completion(text=text, truncated=False, num_tokens=7),) * n, prompt_tokens=9, cached_tokens=0
        )

    def metrics(self) -> Metrics:
        return {}


async def verify(prompt: Prompt, text: str) -> Answer | Verification:
    await asyncio.sleep(0)
    if "?" in text:
        return "unverifiable"
    if text.endswith(prompt.answer):
        return Verification(answer="correct", extracted=prompt.answer)
    return Verification(answer="wrong", extracted=text[-2:], reason=f"{text[-2:]} is not {prompt.answer}")


def find_truth(prompt: Prompt, text: str) -> Truth:
    steps = text.split("\n\n")
    return Truth(answer_right=prompt.answer in steps[-1], steps_right=tuple("slip" not in step for step in steps))


@dataclass
class Shard:
    """An aggregator, its critic, and what it put into the store."""

    folder: Path
    scheme: Scheme = CAPO
    critics: bool = True
    truth: bool = True
    reference: Any = "solution"
    critic: Critic = field(default_factory=Critic)
    store: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = asked_with(critiques=2)
        parts = AggregatorParts(
            scheme=self.scheme,
            between=BLANK_LINE,
            verify=verify,
            critics=Critics([self.critic], settings) if self.critics else None,
            reference=self.reference,
            find_truth=find_truth if self.truth else None,
            samples=self.folder / "samples",
        )
        ledger = Ledger(self.folder, shard=1, scheme=self.scheme, sampling=settings.sampling)
        self.aggregator = Aggregator(parts, shard=1, put=self.put, ledger=ledger)

    def put(self, payload: Any) -> str:
        self.store.append(payload)
        return f"handle {len(self.store) - 1}"

    def score(self, rollouts: Sequence[Rollout], prompt: Prompt = PROMPT, step: int = 3) -> list[int]:
        async def together() -> list[int]:
            return await asyncio.gather(
                *(self.aggregator.score(prompt, rollout, seed=11, step=step) for rollout in rollouts)
            )

        return asyncio.run(together())

    def lines(self, name: str = "000003-1.jsonl") -> list[dict[str, Any]]:
        text = (self.folder / "samples" / name).read_text(encoding="utf-8")
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]


def group_of(*texts: Sequence[str], **more: Any) -> list[Rollout]:
    return [response(*pieces, index=index, prompt_id=PROMPT.id, **more) for index, pieces in enumerate(texts)]


def test_from_responses_to_a_summary_and_sequences(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    rollouts = group_of(GOOD, FLAWED, LOST, versions=(2, 3))
    assert shard.score(rollouts[::-1]) == [2, 1, 0]  # any order of arrival
    summary = shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert (summary.prompt_id, summary.prompt_tokens, summary.oldest_version) == ("p@3", 3, 2)
    assert summary.lengths == (3 + 3, 3 + 3, 3 + 4) and summary.has_credit
    assert summary.handle == "handle 0"
    with pytest.raises(KeyError):
        shard.aggregator.close(PROMPT, 3, num_samples=0)  # nothing of a closed group stays
    (sequences,) = shard.store
    assert [sequence.token_ids for sequence in sequences] == [(10, 11, END), (10, 11, END), (10, 11, 12, END)]
    assert all(sequence.prompt_ids == PROMPT.token_ids for sequence in sequences)
    assert [sequence.source for sequence in sequences] == ["p@3/0", "p@3/1", "p@3/2"]
    assert [sequence.logprobs for sequence in sequences] == [rollout.logprobs for rollout in rollouts]
    # Token rewards 2 2 2 | 1 2 2 | 0 -1 0 0: mean 1, variance 1.2; a slip costs one below its neighbours.
    deviation = 1.2**0.5
    wanted = [[2, 2, 2], [1, 2, 2], [0, -1, 0, 0]]
    for sequence, rewards in zip(sequences, wanted, strict=True):
        assert sequence.advantages == pytest.approx([(reward - 1) / deviation for reward in rewards], abs=1e-5)


def test_what_critics_are_asked(tmp_path: Path) -> None:
    """Each response at once, its shown steps, the reference, and a seed that depends on nothing but what it is of."""
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, FLAWED)[1:])
    (asked,) = shard.critic.asked  # while the other is still being sampled
    assert asked["steps"] == ["a slip", "so 42"]
    assert asked["seed"] == seed_of(11, 2, "p@3", 1, "critique")
    assert PROMPT.question in asked["text"] and PROMPT.solution in asked["text"]
    answer_only = Shard(tmp_path, reference="answer")
    answer_only.score(group_of(GOOD))
    assert PROMPT.solution not in answer_only.critic.asked[0]["text"]


def test_an_unverifiable_response_is_dropped_and_counted(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, ("fine\n\n", "or not?"), LOST))
    summary = shard.aggregator.close(PROMPT, 3, num_samples=3)
    assert summary.lengths == (6, 7)
    assert len(shard.store[0]) == 2
    assert (summary.tally["unverifiable"], summary.tally["verified"], summary.tally["trained_responses"]) == (1, 2, 2)
    shard.aggregator.write_samples(3)
    assert [line["advantages"] is None for line in shard.lines()] == [False, True, False]


def test_an_unjudged_response_is_dropped_and_counted(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, ("how long", " is 42"), LOST))
    summary = shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert summary.lengths == (6, 7)
    assert (summary.tally["unjudged"], summary.tally["critique_unreadable"]) == (1, 2)


@pytest.mark.parametrize("kept", [(), (FLAWED,)])
def test_a_group_with_fewer_than_two_kept_is_dropped(tmp_path: Path, kept: tuple[Sequence[str], ...]) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(*kept, ODD, ODD))
    summary = shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert summary.lengths == () and not summary.has_credit
    assert shard.store == [()]
    assert (summary.tally["groups"], summary.tally["groups_dropped"]) == (1, 1)
    assert summary.tally["trained_responses"] == len(kept)


def test_a_group_of_which_one_was_not_cut_off_teaches_by_that_one(tmp_path: Path) -> None:
    """Masked is not dropped: a group does not count against `max_dropped_share` for it."""
    shard = Shard(tmp_path, scheme=replace(CAPO, mask_cut_off=True))
    shard.score([*group_of(GOOD), *(replace(one, finish="length") for one in group_of(GOOD, FLAWED, LOST)[1:])])
    summary = shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert summary.lengths == (6,) and summary.has_credit
    counted = ("groups_dropped", "groups_with_credit", "trained_responses")
    assert [summary.tally[name] for name in counted] == [0, 1, 1]


def test_a_group_of_equals_has_no_credit(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, GOOD))
    summary = shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert summary.lengths == (6, 6) and not summary.has_credit
    assert {advantage for sequence in shard.store[0] for advantage in sequence.advantages} == {0.0}


def test_truths_are_counted(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, FLAWED, LOST))
    tally = shard.aggregator.close(PROMPT, 3, num_samples=0).tally
    wanted = {"truth_steps": 7, "steps_right": 5, "both_right": 1, "only_answer_right": 1, "only_process_right": 0}
    wanted |= {"neither_right": 1, "truth_flagged": 2, "truth_wrong": 2, "true_flags": 2}
    assert {name: tally[name] for name in wanted} == wanted
    nobody_knows = Shard(tmp_path, truth=False)
    nobody_knows.score(group_of(GOOD, LOST))
    assert "truth_steps" not in nobody_knows.aggregator.close(PROMPT, 3, num_samples=0).tally


def test_without_critics_outcomes_alone_count(tmp_path: Path) -> None:
    shard = Shard(tmp_path, critics=False, scheme=Scheme(advantage="grpo"))
    shard.score(group_of(FLAWED, LOST))
    summary = shard.aggregator.close(PROMPT, 3, num_samples=1)
    assert summary.has_credit
    assert [sequence.advantages for sequence in shard.store[0]] == [
        pytest.approx([1.0] * 3, abs=1e-5),
        pytest.approx([-1.0] * 4, abs=1e-5),
    ]
    assert summary.tally["critiques"] == 0 and shard.aggregator.metrics() == {}


def together(shard: Shard, judged: bool, *rollouts: Rollout) -> GroupSummary:
    """As under a budget: verified first, then judged, or not, as a group."""

    async def run() -> None:
        assert await asyncio.gather(*(shard.aggregator.verify(PROMPT, rollout) for rollout in rollouts))
        assert shard.critic.asked == []
        if judged:
            await shard.aggregator.judge_group(PROMPT, seed=11, step=3)
        else:
            shard.aggregator.leave_group(PROMPT)

    asyncio.run(run())
    return shard.aggregator.close(PROMPT, 3, num_samples=0)


def test_a_group_that_is_judged_later_is_judged_the_same(tmp_path: Path) -> None:
    at_once, later = Shard(tmp_path / "a"), Shard(tmp_path / "b")
    rollouts = group_of(GOOD, FLAWED, LOST)
    at_once.score(rollouts)
    wanted = at_once.aggregator.close(PROMPT, 3, num_samples=0)
    assert together(later, True, *rollouts[::-1]) == wanted and later.store == at_once.store
    by_steps = [sorted(shard.critic.asked, key=lambda asked: asked["seed"]) for shard in (at_once, later)]
    assert by_steps[0] == by_steps[1]


def test_a_group_that_is_not_judged_has_outcome_rewards_alone(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    summary = together(shard, False, *group_of(FLAWED, GOOD, LOST))
    assert shard.critic.asked == [] and summary.lengths == (6, 6, 7)
    rows = [set(sequence.advantages) for sequence in shard.store[0]]
    assert [len(row) for row in rows] == [1, 1, 1] and rows[0] == rows[1] != rows[2]
    tally = summary.tally
    assert (tally["critique_not_asked"], tally["critiques"], tally["unjudged"], tally["answered_steps"]) == (6, 6, 3, 0)


def test_what_a_budget_asks_of_a_group_is_in_its_order(tmp_path: Path) -> None:
    shard = Shard(tmp_path)

    async def run() -> None:
        for rollout in group_of(GOOD, LOST, ("fine\n\n", "or not?"))[::-1]:
            await shard.aggregator.verify(PROMPT, rollout)

    asyncio.run(run())
    assert shard.aggregator.sampled(PROMPT) == (
        Sampled("correct", 2),
        Sampled("wrong", len(LOST)),
        Sampled("unverifiable", 2),
    )


def test_results_do_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    seen = set()
    for seed in range(5):
        shard = Shard(tmp_path)
        rollouts = group_of(GOOD, FLAWED, LOST, GOOD)
        random.Random(seed).shuffle(rollouts)
        shard.score(rollouts)
        seen.add((shard.aggregator.close(PROMPT, 3, num_samples=0).lengths, repr(shard.store)))
    assert len(seen) == 1


def test_a_response_that_is_delivered_twice_counts_once(tmp_path: Path) -> None:
    """A worker that dies after it has delivered is replaced by one that samples the same again."""
    shard = Shard(tmp_path)
    shard.score([*group_of(GOOD, LOST), *group_of(GOOD)])
    assert shard.aggregator.close(PROMPT, 3, num_samples=0).tally["responses"] == 2


def test_a_sample_has_all_there_is_to_know(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(FLAWED, LOST, versions=(3,)))
    shard.aggregator.close(PROMPT, 3, num_samples=9)
    shard.aggregator.write_samples(3)
    sample, other = shard.lines()
    advantages = sample.pop("advantages")
    assert len(advantages) == 3 and advantages[0] < advantages[1] == advantages[2]
    critique = {"critic": "critic", "outcome": "ok", "wrong_steps": [0], "text": render_reply([0])}
    assert sample == {
        "step": 3,
        "prompt_id": "p@3",
        "index": 0,
        "question": PROMPT.question,
        "gold": "42",
        "solution": PROMPT.solution,
        "response": "a slip\n\nso 42",
        "finish": "stop",
        "versions": [3],
        "answer": "correct",
        "extracted": "42",
        "reason": None,
        "steps": [{"start": 0, "end": 8, "tokens": [0, 1]}, {"start": 8, "end": 13, "tokens": [1, 2]}],
        "steps_right": [False, True],
        "critiques": [critique, critique],
        "votes": [2, 0],
        "wrong_steps": [0],
        "token_ids": [10, 11, END],
        "char_ends": [8, 13, 13],
        "token_rewards": [1, 2, 2],
    }
    assert other["index"] == 1


def test_samples_are_written_whole_and_by_step(tmp_path: Path) -> None:
    """Groups of the next step may be closed before the samples of this one are written."""
    shard = Shard(tmp_path)
    for step in (3, 4):
        for name in ("a", "b"):
            prompt = Prompt(id=f"{name}@{step}", question="?", token_ids=(1,), answer="42")
            shard.score(group_of(GOOD, LOST, FLAWED), prompt, step)
            shard.aggregator.close(prompt, step, num_samples=2)
    shard.aggregator.write_samples(3)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["000003-1.jsonl"]
    assert [(line["prompt_id"], line["index"]) for line in shard.lines()] == [
        ("a@3", 0), ("a@3", 1), ("b@3", 0), ("b@3", 1),
    ]  # fmt: skip
    shard.aggregator.write_samples(5)  # a shard may have had no prompt of a step
    shard.aggregator.write_samples(4)
    assert {line["step"] for line in shard.lines("000004-1.jsonl")} == {4}
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_the_ledger_has_dropped_responses_too(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, ("how long", " is 41"), ("fine\n\n", "or not?")))
    shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert not (tmp_path / "responses").exists()
    shard.aggregator.write_samples(3)
    ((scheme, (group,)),) = read(tmp_path)
    assert scheme.scheme == CAPO
    assert (group.question, group.gold, group.solution) == (PROMPT.question, PROMPT.answer, PROMPT.solution)
    assert len(group.steps_right) == 3 and all(group.steps_right)
    assert [(member.answer, member.extracted, member.reason) for member in group.members] == [
        ("correct", "42", None), ("wrong", "41", "41 is not 42"), ("unverifiable", None, None),
    ]  # fmt: skip
    assert [[c.outcome for c in member.critiques] for member in group.members] == [
        ["ok"] * 2, ["unreadable"] * 2, ["ok"] * 2,
    ]  # fmt: skip
    first, second = group.members[0].critiques
    assert first.seed == seed_of(11, 2, "p@3", 0, "critique") and second.seed == first.seed + 1
    assert first.prompt_hash == second.prompt_hash != group.members[1].critiques[0].prompt_hash


def test_a_thought_that_the_prompt_opened_is_verified_as_one(tmp_path: Path) -> None:
    seen: list[str] = []

    async def verify(prompt: Prompt, response: str) -> Verification:
        seen.append(response)
        return Verification(answer="wrong")

    shard = Shard(tmp_path)
    shard.aggregator._parts = replace(shard.aggregator._parts, verify=verify)
    rollout = replace(group_of(GOOD)[0], opened="<think>\n")
    asyncio.run(shard.aggregator.check(PROMPT, rollout))
    assert seen == ["<think>\n" + rollout.text]


def test_no_file_without_samples(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, LOST))
    shard.aggregator.close(PROMPT, 3, num_samples=0)
    shard.aggregator.write_samples(3)
    assert not (tmp_path / "samples").exists()


def test_an_evaluation_keeps_nothing_and_asks_nobody(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    tally = asyncio.run(shard.aggregator.check(PROMPT, group_of(GOOD, FLAWED)[1]))
    assert shard.critic.asked == [] and shard.store == []
    assert (tally["responses"], tally["correct"], tally["only_answer_right"]) == (1, 1, 1)
    assert not [name for name in tally if name.startswith("groups")]
    with pytest.raises(KeyError):
        shard.aggregator.close(PROMPT, 3, num_samples=0)


def test_failed_critiques_are_counted_with_their_group(tmp_path: Path) -> None:
    """Once, however often the cache brings them back; whether the run bears them is decided over steps."""
    shard = Shard(tmp_path)
    shard.score(group_of(ODD, ODD, GOOD))
    assert shard.aggregator.failure().startswith("a reply that ends in ")
    tally = shard.aggregator.close(PROMPT, 3, num_samples=0).tally
    assert (tally["failed_unreadable"], tally["fresh_critiques"]) == (4, 6)
    assert shard.aggregator.metrics()["outcome_unreadable"] == 4
    assert shard.aggregator.failure() == ""


def test_totals_are_kept_whoever_takes_the_metrics(tmp_path: Path) -> None:
    """They have what is under way, and nothing of what the engines count."""
    shard = Shard(tmp_path)
    shard.score(group_of(GOOD, FLAWED, LOST))
    for _ in range(2):
        totals = shard.aggregator.totals()
        assert (totals["responses"], totals["groups_open"], totals["responses_open"]) == (3, 1, 0)
        assert totals["outcome_ok"] == 6 and totals["busy_s"] > 0
        shard.aggregator.metrics()
    assert not {"prompt_tokens", "cached_tokens", "generated_tokens"} & set(totals)
    shard.aggregator.close(PROMPT, 3, num_samples=0)
    assert shard.aggregator.totals()["groups_open"] == 0
    assert Shard(tmp_path, critics=False).aggregator.totals()["responses_open"] == 0
