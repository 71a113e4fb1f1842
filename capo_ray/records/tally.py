"""What is counted of a group, and the metrics that the counts become.

Counts are plain sums, so that those of groups, shards and steps add up; a rate is made once, from the sums. Leaves out
what engines count of themselves (their `metrics`) and where metrics go (tracking).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from capo_ray.credit.flags import FLAG
from capo_ray.credit.group import GroupScore
from capo_ray.types import FAILED_OUTCOMES, REPLIED_OUTCOMES, Critique, Metrics, Scored


@dataclass(frozen=True, slots=True)
class Truth:
    """What a task that knows the truth says of a response."""

    answer_right: bool
    steps_right: tuple[bool, ...]
    """One entry per step of the response."""

    @property
    def process_right(self) -> bool:
        """A response without a step has no process to be right."""
        return bool(self.steps_right) and all(self.steps_right)


RATES: dict[str, tuple[str, str]] = {
    "outcome/accuracy": ("correct", "verified"),
    "outcome/unverifiable_share": ("unverifiable", "responses"),
    "reward/mean_token_reward": ("token_reward", "response_tokens"),
    "reward/judged": ("judged_rewards", "judged_rewarded"),
    "reward/unjudged": ("unjudged_rewards", "unjudged_rewarded"),
    "response/mean_tokens": ("response_tokens", "responses"),
    "response/mean_tokens_right": ("right_tokens", "correct"),
    "response/mean_tokens_wrong": ("wrong_tokens", "wrong"),
    "response/mean_steps": ("steps", "responses"),
    "response/cut_off_share": ("cut_off", "responses"),
    "critic/valid_share": ("valid_critiques", "finished_critiques"),
    "critic/unjudged_share": ("unjudged", "responses"),
    "critic/flagged_step_share": ("flagged_steps", "judged_steps"),
    "critic/flagged_token_share": ("flagged_tokens", "judged_tokens"),
    "critic/flagged_steps_right": ("right_flagged_steps", "right_judged"),
    "critic/flagged_steps_wrong": ("wrong_flagged_steps", "wrong_judged"),
    "critic/seconds_per_response": ("seconds", "responses"),
    "critic/mean_tokens": ("critique_tokens", "written_critiques"),
    "critic/saved_token_share": ("tokens_not_spent", "tokens_of_all_critiques"),
    "critic/from_cache_share": ("critiques_from_cache", "critiques"),
    "critic/vote_agreement": ("agreeing_pairs", "compared_pairs"),
    "critic/first_differs_share": ("first_differs", "judged_in_full"),
    "critic/precision": ("true_flags", "truth_flagged"),
    "critic/recall": ("true_flags", "truth_wrong"),
    "critic/canary_precision": ("canary_hits", "canary_flagged"),
    "critic/canary_recall": ("canary_hits", "canary_wrong"),
    "critic/canary_valid_share": ("canary_valid_critiques", "canary_finished_critiques"),
    "critic/canary_flagged_step_share": ("canary_flagged_steps", "canary_judged_steps"),
    "critic/canary_false_alarm_share": ("canary_false_flags", "canary_right"),
    "critic/over_budget_share": ("over_budget", "responses"),
    "group/credit_share": ("groups_with_credit", "groups"),
    "group/dropped_share": ("groups_dropped", "groups"),
    "truth/step_accuracy": ("steps_right", "truth_steps"),
    "truth/process_accuracy": ("process_right", "truth_responses"),
    "truth/right_answer_and_process": ("both_right", "truth_responses"),
    "truth/right_answer_wrong_process": ("only_answer_right", "truth_responses"),
    "truth/wrong_answer_right_process": ("only_process_right", "truth_responses"),
    "truth/wrong_answer_wrong_process": ("neither_right", "truth_responses"),
}
"""Metric -> the two counts whose ratio it is. A critique that was not asked for, refused or cancelled is nobody's
failure: it is in no mean over the finished ones."""


def count_group(score: GroupScore, truths: Sequence[Truth | None]) -> Metrics:
    """Sums over one group; `truths` has one entry per member, None where the task knows none."""
    total: Counter[str] = Counter()
    for scored, truth in zip(score.members, truths, strict=True):
        total.update(count_response(scored, truth))
    rows = [row for row in score.advantages if row is not None]
    total.update(
        groups=1, groups_with_credit=score.has_credit, groups_dropped=score.num_compared < 2,
        trained_responses=len(rows), unjudged=score.num_unjudged,
    )  # fmt: skip
    spread = {
        "trained_tokens": float(sum(map(len, rows))),
        "advantage": fsum(value for row in rows for value in row),
        "advantage_squared": fsum(value * value for row in rows for value in row),
    }
    return {name: float(value) for name, value in total.items()} | spread


def count_response(scored: Scored, truth: Truth | None) -> Metrics:
    """What counts of a response alone, also where it is in no group (evaluation)."""
    counts = _count_credit(scored) | _count_answer(scored) | (_count_truth(scored, truth) if truth is not None else {})
    return {name: float(value) for name, value in counts.items()}


def _count_credit(scored: Scored) -> dict[str, float]:
    verdict, rollout = scored.verdict, scored.rollout
    flagged = verdict.wrong_steps if verdict else ()
    finished = [c for c in scored.critiques if c.outcome == "ok" or c.outcome in FAILED_OUTCOMES]
    return {
        "responses": 1,
        "verified": scored.answer != "unverifiable",
        "unverifiable": scored.answer == "unverifiable",
        "correct": scored.answer == "correct",
        "cut_off": rollout.finish == "length",
        "response_tokens": len(rollout.token_ids),
        "token_reward": sum(scored.token_rewards),
        "steps": len(scored.steps),
        "judged_steps": len(scored.steps) if verdict else 0,
        "judged_tokens": len(rollout.token_ids) if verdict else 0,
        "flagged_steps": len(flagged),
        "flagged_tokens": sum(scored.steps[s].tokens[1] - scored.steps[s].tokens[0] for s in flagged),
        "critiques": len(scored.critiques),
        "answered_steps": len(scored.steps) if any(c.outcome in REPLIED_OUTCOMES for c in scored.critiques) else 0,
        "finished_critiques": len(finished),
        "fresh_critiques": sum(not critique.cached for critique in finished),
        "written_critiques": sum(c.outcome in REPLIED_OUTCOMES and not c.cached for c in scored.critiques),
        "valid_critiques": sum(critique.outcome == "ok" for critique in scored.critiques),
        "critiques_from_cache": sum(critique.cached for critique in scored.critiques),
        "critique_tokens": (spent := sum(critique.num_tokens for critique in scored.critiques)),
        "judging_tokens": spent + sum(critique.kept_tokens for critique in scored.critiques),
        "tokens_not_spent": (saved := _tokens_not_spent(scored.critiques)),
        "tokens_of_all_critiques": spent + saved,
        **Counter(f"critique_{critique.outcome}" for critique in scored.critiques),
        **Counter(f"failed_{c.outcome}" for c in finished if c.outcome != "ok" and not c.cached),
    }


def _count_answer(scored: Scored) -> dict[str, float]:
    """Right and wrong responses apart, and, where critics were to judge them, judged and unjudged ones."""
    if scored.answer == "unverifiable":
        return {}
    kind, rewards, verdict = "right" if scored.answer == "correct" else "wrong", scored.token_rewards, scored.verdict
    counts: dict[str, float] = {f"{kind}_tokens": len(rewards), "wrong": kind == "wrong"}
    if verdict is not None:
        counts |= {f"{kind}_judged": 1, f"{kind}_flagged_steps": len(verdict.wrong_steps)}
    if scored.critiques and rewards:
        name = "judged" if verdict is not None else "unjudged"
        counts |= {f"{name}_rewards": fsum(rewards) / len(rewards), f"{name}_rewarded": 1}
    return counts


def _tokens_not_spent(critiques: Sequence[Critique]) -> float:
    """What the critiques that were not asked for would have cost: a guess, as many tokens each as those that came."""
    came = [critique.num_tokens for critique in critiques if critique.outcome in REPLIED_OUTCOMES]
    left = sum(critique.outcome == "not_asked" for critique in critiques)
    return left * sum(came) / len(came) if came else 0.0


def _count_truth(scored: Scored, truth: Truth) -> dict[str, float]:
    answer, process = truth.answer_right, truth.process_right
    counts: dict[str, float] = {
        "truth_responses": 1,
        "truth_steps": len(truth.steps_right),
        "steps_right": sum(truth.steps_right),
        "process_right": process,
        "both_right": answer and process,
        "only_answer_right": answer and not process,
        "only_process_right": process and not answer,
        "neither_right": not answer and not process,
    }
    if scored.verdict is not None and len(truth.steps_right) == len(scored.steps):
        flagged = {s for s, weight in enumerate(scored.verdict.weights) if weight >= FLAG}
        wrong = {s for s, right in enumerate(truth.steps_right) if not right}
        counts |= {"truth_flagged": len(flagged), "truth_wrong": len(wrong), "true_flags": len(flagged & wrong)}
    return counts


def add(tallies: Iterable[Mapping[str, float]]) -> Metrics:
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    return dict(total)


def rates(tally: Mapping[str, float]) -> Metrics:
    """Means and shares, each where both counts are there and the whole is not 0, and how critiques ended."""
    made = {
        name: tally[part] / tally[whole] for name, (part, whole) in RATES.items() if part in tally and tally.get(whole)
    }
    if critiques := tally.get("critiques"):
        made |= {
            f"critic/{name.removeprefix('critique_')}_share": value / critiques
            for name, value in tally.items()
            if name.startswith("critique_") and name not in ("critique_tokens", "critique_ok")
        }
    return made
