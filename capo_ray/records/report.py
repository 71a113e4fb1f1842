"""What the numbers of a step are called in metrics.jsonl, and how what was counted in many places is added up.

Pure: whoever asks the actors hands over what they said. Leaves out what is counted of a group and the rates that are
made of counts (tally), evaluations (estimates) and where metrics go (tracking).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from capo_ray.records.tally import add, rates
from capo_ray.types import Batch, GroupSummary, Metrics, Update

_OF_JUDGING = (
    *("retries", "references_shortened", "contradictions", "dropped_indices", "engines_down"),
    *("canaries", "canary_hits", "canary_flagged", "canary_wrong"),
)
"""Counts of the judging service that are shown as they are, as critic/NAME."""


def tally_of(batch: Batch) -> Metrics:
    """Counts of all groups that were sampled, of those that are not trained on too."""
    return add(group.tally for group in (*batch.groups, *batch.spare))


def judging_tokens(groups: Iterable[GroupSummary]) -> float:
    """What is taken from a budget: as if nothing had come from a cache."""
    return sum(group.tally.get("judging_tokens", 0.0) for group in groups)


def of_step(
    batch: Batch,
    update: Update,
    *,
    shards: Sequence[Metrics],
    speeds: Metrics,
    seconds: Metrics,
    rollout_deaths: int,
    critic_tokens: float | None,
    refills: bool,
) -> Metrics:
    """The metrics of one step.

    `shards`: what each aggregator shard counted of its judging since the last step; `speeds`: see cluster.speeds;
    `seconds`: stage -> seconds; `critic_tokens`: those that critics may write in a step, None without a budget;
    `refills`: whether groups that teach nothing are replaced.
    """
    tally = tally_of(batch)
    metrics = rates(tally) | {f"trainer/{name}": value for name, value in update.metrics.items()}
    metrics |= of_judging(shards) | speeds | _trainer_speed(batch, seconds)
    metrics |= {f"seconds/{name}": value for name, value in (seconds | {"collect": batch.seconds}).items()}
    metrics |= {
        "staleness": float(batch.step - 1 - batch.oldest_version),
        "run/rollout_deaths": float(rollout_deaths),
        "tokens/sampled": tally.get("response_tokens", 0.0),
        "tokens/critiques": tally.get("critique_tokens", 0.0),
    }
    if critic_tokens is not None:
        metrics["critic/budget_used"] = tally["critique_tokens"] / critic_tokens
    if refills:
        metrics["group/refilled"] = float(len(batch.spare))
    return metrics


def of_judging(shards: Sequence[Metrics]) -> Metrics:
    """What the judging service counted since the last step."""
    judging = add(shards)
    if "engines_down" in judging:
        judging["engines_down"] = max(shard["engines_down"] for shard in shards)  # all shards ask the same engines
    counted = {f"critic/{name}": judging[name] for name in _OF_JUDGING if name in judging}
    if "canary_tokens" in judging:
        counted["tokens/canaries"] = judging["canary_tokens"]
    if judging.get("prompt_tokens"):  # 0 where critics do not say it
        counted["tokens/critic_prompts"] = judging["prompt_tokens"]
    return rates(judging) | counted


def _trainer_speed(batch: Batch, seconds: Mapping[str, float]) -> Metrics:
    tokens = sum(sum(group.lengths) for group in batch.groups)
    return {"speed/trainer_tokens_per_s": tokens / seconds["update"]} if seconds.get("update") else {}
