"""Whether a run's own files keep what a run promises of its samples, whatever was done to it on the way.

No sample is lost uncounted, trained on twice, older than `algorithm.max_staleness`, or from other weights than its
version says. What is compared: `metrics.jsonl`, which counts, and the ledger, which has every response. Advantages are
made again from the ledger, so the tokens that were trained on are known from both. Weights are compared by
`trainer/sampler_gap_max`: each token's log-probability by the weights that sampled it, and by the trainer's own of that
version; weights that were half taken over differ by whole units. Reads alone, starts nothing. Leaves out what was
rolled back, which is in no line of weights that survived.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.credit.group import Scheme, score_group
from capo_ray.files.run_dir import check_count
from capo_ray.records.ledger import RecordedGroup, read, reading
from capo_ray.records.tracking import is_evaluation
from capo_ray.types import JsonDict

MOST_GAP = 0.01
"""Of two log-probabilities of one token by the same weights in float32: what was measured is below 1e-5, and 1.7 where
one tensor was another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the run was told, as far as it is checked; see `rules_of`."""

    prompts: int
    responses: int
    """To a prompt."""
    passes: int
    max_staleness: int
    most_gap: float
    """Of log-probabilities; infinite where sampler and trainer do not have the same distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was looked at, and what was found."""

    steps: int
    responses: int
    trained_tokens: int
    """Of one pass."""
    largest_gap: float
    findings: tuple[str, ...]


def check(run_dir: Path) -> Checked:
    """Of a run that has ended, or stands still. Raises LedgerError where it has no ledger, or another file of it cannot
    be read; RunDirError where it counts its steps otherwise."""
    check_count(run_dir)
    rules, lines = rules_of(run_dir), _steps(run_dir)
    return look(lines, ((recorded.scheme, groups) for recorded, groups in read(run_dir)), rules)


def rules_of(run_dir: Path) -> Rules:
    """As its config.yaml has them, which is of the last time that the run was started. Raises LedgerError."""
    import yaml

    path = run_dir / "config.yaml"
    with reading(path):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        sampling, algorithm = config["rollout"], config["algorithm"]
        whole = sampling["top_p"] == 1 and sampling["top_k"] == -1
        prompts, responses = config["prompts_per_step"], config["responses_per_prompt"]
        passes, at_once = config["trainer"]["optimisation_passes"], config["trainer"]["responses_per_update"]
        once = passes == 1 and (at_once or prompts * responses) >= prompts * responses
        same = algorithm["max_staleness"] == 0 and (once or algorithm["old_logprobs"] != "sampler")
        return Rules(
            prompts=prompts,
            responses=responses,
            passes=passes,
            max_staleness=algorithm["max_staleness"],
            most_gap=MOST_GAP if whole and same and config["policy"]["dtype"] == "float32" else math.inf,
        )


def _steps(run_dir: Path) -> list[JsonDict]:
    path = run_dir / "metrics.jsonl"
    with reading(path):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if type(line["step"]) is int and not is_evaluation(line)]


def look(
    lines: Sequence[JsonDict], recorded: Iterable[tuple[Scheme, Sequence[RecordedGroup]]], rules: Rules
) -> Checked:
    """`lines` of steps in the order of metrics.jsonl; `recorded`: the groups of each step of the ledger, one step at a
    time, and how they were scored."""
    findings: list[str] = []
    steps = [line["step"] for line in lines]
    findings += [f"step {step} is written down {times} times" for step, times in Counter(steps).items() if times > 1]
    missing = sorted(set(range(1, max(steps, default=0) + 1)) - set(steps))
    findings += [f"step {step} is not written down, a later one is" for step in missing]
    by_step: dict[int, list[JsonDict]] = {}
    for line in lines:
        by_step.setdefault(line["step"], []).append(line)
    places: dict[tuple[str, int], list[int]] = {}
    responses = trained = 0
    for scheme, groups in recorded:
        _place(places, groups)
        for line in by_step.pop(groups[0].step, ()):
            counted = _trained_tokens(groups, scheme)
            responses, trained = responses + sum(len(group.members) for group in groups), trained + counted
            said = (*_lost(line, groups, rules), *_stale(line, groups, rules), *_weights(line, counted, rules))
            findings += [f"step {line['step']}: {finding}" for finding in said]
    findings += [f"step {step} has no responses in the ledger: they are lost" for step in sorted(by_step)]
    findings += _twice(places)
    gaps = [gap for line in lines if (gap := line.get("trainer/sampler_gap_max")) is not None]
    return Checked(
        steps=len(lines),
        responses=responses,
        trained_tokens=trained,
        largest_gap=max(gaps, default=0.0),
        findings=tuple(findings),
    )


def _place(places: dict[tuple[str, int], list[int]], groups: Sequence[RecordedGroup]) -> None:
    """Note in which step each response is trained on."""
    for group in groups:
        for member in () if group.spare else group.members:
            places.setdefault((group.prompt_id, member.rollout.index), []).append(group.step)


def _twice(places: Mapping[tuple[str, int], Sequence[int]]) -> Iterator[str]:
    """A name of a prompt has the place at which it was drawn, so it comes once in a run."""
    for (prompt, index), steps in places.items():
        if len(steps) > 1:
            yield f"response {prompt}/{index} is trained on twice, in steps {', '.join(map(str, steps))}"


def _lost(line: JsonDict, groups: Sequence[RecordedGroup], rules: Rules) -> Iterator[str]:
    """What was sampled is there, and what is counted is what is there."""
    kept = [group for group in groups if not group.spare]
    if len(kept) != rules.prompts:
        yield f"{len(kept)} groups are recorded, {rules.prompts} were to be sampled"
    for group in groups:
        there = Counter(member.rollout.index for member in group.members)
        if gone := sorted(set(range(rules.responses)) - set(there)):
            yield f"responses {gone} to {group.prompt_id} are lost: neither trained on nor dropped"
        if strange := sorted(set(there) - set(range(rules.responses))):
            yield f"responses {strange} to {group.prompt_id} were never asked for"
    sampled = sum(len(member.rollout.token_ids) for group in groups for member in group.members)
    if not _same(line, "tokens/sampled", sampled):
        yield f"{line.get('tokens/sampled')} tokens are counted as sampled, {sampled} are recorded"
    members = [member for group in groups for member in group.members]
    unverifiable = sum(member.answer == "unverifiable" for member in members)
    if not _same(line, "outcome/unverifiable_share", unverifiable / max(len(members), 1)):
        yield f"{unverifiable} of {len(members)} answers are unverifiable, which is counted otherwise"


def _stale(line: JsonDict, groups: Sequence[RecordedGroup], rules: Rules) -> Iterator[str]:
    """Step s, from 1, is trained on by version s - 1 and makes version s."""
    oldest = version = line["step"] - 1
    for group in groups:
        for member in group.members:
            versions, name = member.rollout.versions, f"{group.prompt_id}/{member.rollout.index}"
            if len(set(versions)) > 1:
                yield f"{name} was sampled while weights moved, by versions {versions}"
            if max(versions) > version:
                yield f"{name} was sampled by version {max(versions)}, which is not made yet"
            if (age := version - min(versions)) > rules.max_staleness:
                yield f"{name} is {age} versions old, {rules.max_staleness} may be (algorithm.max_staleness)"
            oldest = oldest if group.spare else min(oldest, *versions)
    if not _same(line, "staleness", version - oldest):
        yield f"staleness {line.get('staleness')} is counted, {version - oldest} is recorded"


def _weights(line: JsonDict, trained: int, rules: Rules) -> Iterator[str]:
    counted = line.get("trainer/tokens")
    all_steps = line.get("trainer/skipped_steps", 0) == line.get("trainer/nonfinite_steps", 0)
    if all_steps and not _same(line, "trainer/tokens", trained * rules.passes):
        yield f"{counted} tokens are counted as trained on, {trained} of {rules.passes} passes are recorded"
    elif counted is not None and counted > trained * rules.passes:
        yield f"{counted} tokens are counted as trained on, at most {trained * rules.passes} can be"
    if not counted or math.isinf(rules.most_gap):
        return
    gap = line.get("trainer/sampler_gap_max")
    if gap is None or not gap <= rules.most_gap:
        yield f"log-probabilities of sampler and trainer differ by {gap}: the sampler had other weights"


def _trained_tokens(groups: Sequence[RecordedGroup], scheme: Scheme) -> int:
    tokens = 0
    for group in groups:
        if not group.spare:
            score = score_group(group.members, scheme)
            tokens += sum(len(row) for row in score.advantages if row) if score.num_compared > 1 else 0
    return tokens


def _same(line: Mapping[str, Any], name: str, value: float) -> bool:
    """Whether a count is `value`, or is none and was to be 0."""
    return math.isclose(line.get(name) or 0.0, value, rel_tol=1e-9, abs_tol=1e-9)
