"""What the numbers of a step are called, and how what many say is added up."""

from __future__ import annotations

from typing import Any

import pytest

from capo_ray.records import report
from capo_ray.types import Batch, GroupSummary, Metrics, Update


def group(tally: Metrics, lengths: tuple[int, ...] = (3, 5), oldest_version: int = 6) -> GroupSummary:
    return GroupSummary(
        prompt_id="p",
        prompt_tokens=1,
        lengths=lengths,
        oldest_version=oldest_version,
        has_credit=True,
        tally=tally,
        handle=None,
    )


def step(*groups: GroupSummary, spare: tuple[GroupSummary, ...] = (), **given: Any) -> Metrics:
    batch = Batch(step=7, groups=groups, spare=spare, seconds=1.5)
    told: dict[str, Any] = {
        "shards": [],
        "speeds": {},
        "seconds": {},
        "rollout_deaths": 0,
        "critic_tokens": None,
        "refills": False,
    }
    return report.of_step(batch, Update(metrics={"loss": 0.25}, version=8), **(told | given))


def test_a_step_has_its_groups_its_update_and_what_actors_said() -> None:
    """All in one, each by its name; groups that are not trained on count, but not as what the trainer read."""
    groups = [group({"correct": right, "verified": 2.0, "response_tokens": 8.0}) for right in (1.0, 2.0)]
    spare = group({"correct": 0.0, "verified": 4.0, "response_tokens": 20.0, "critique_tokens": 9.0}, (20,), 5)
    made = step(
        *groups,
        spare=(spare,),
        shards=[{"retries": 1.0}, {"retries": 2.0}],
        speeds={"idle/critic_share": 0.5},
        seconds={"update": 4.0},
        rollout_deaths=3,
    )
    assert made == {
        "outcome/accuracy": 3 / 8,
        "trainer/loss": 0.25,
        "critic/retries": 3,
        "idle/critic_share": 0.5,
        "speed/trainer_tokens_per_s": 16 / 4,
        "seconds/update": 4,
        "seconds/collect": 1.5,
        "staleness": 0,
        "run/rollout_deaths": 3,
        "tokens/sampled": 36,
        "tokens/critiques": 9,
    }


def test_a_budget_and_refills_show_where_there_are_some() -> None:
    made = step(group({"critique_tokens": 60.0}), spare=(group({}), group({})), critic_tokens=80.0, refills=True)
    assert (made["critic/budget_used"], made["group/refilled"]) == (0.75, 2)


def test_what_is_taken_from_a_budget() -> None:
    assert report.judging_tokens([group({"judging_tokens": 70.0, "critique_tokens": 40.0}), group({})]) == 70


@pytest.mark.parametrize(
    ("shards", "metrics"),
    [
        ([{"prompt_tokens": 80.0, "cached_prompt_tokens": 60.0}], {"tokens/critic_prompts": 80}),
        ([{"prompt_tokens": 0.0}], {}),
        (
            [{"canaries": 1.0, "canary_tokens": 0.0}, {"canaries": 1.0, "canary_tokens": 0.0}],
            {"critic/canaries": 2, "tokens/canaries": 0},
        ),
        ([{"seconds": 3.0, "responses": 1.0}, {"seconds": 5.0, "responses": 3.0}], {"critic/seconds_per_response": 2}),
    ],
)
def test_what_shards_counted_is_added_up(shards: list[Metrics], metrics: Metrics) -> None:
    assert report.of_judging(shards) == metrics


def test_an_engine_that_is_down_counts_once_however_many_shards_ask_it() -> None:
    shards = [{"engines_down": down, "retries": 2.0} for down in (0.0, 2.0, 1.0)]
    assert report.of_judging(shards) == {"critic/engines_down": 2, "critic/retries": 6}
