"""The reward aggregator: verifies answers, has responses judged, votes, and gives every token its reward and advantage.

One shard holds all responses of a prompt; a response is verified and judged the moment it arrives, its group is closed
when the last one is. Where critics have a budget a response is verified when it arrives, and judged, or not, with its
group. Payloads stay here and in the object store; the driver gets summaries. Leaves out how a group is scored
(credit.group), how critics are asked (critics) and who samples (rollout_pool).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capo_ray.credit.critique import ReferenceKind, reference_of, shorter_reference
from capo_ray.credit.group import GroupScore, Member, Scheme, score_group
from capo_ray.credit.steps import steps_of
from capo_ray.critics.budget import Sampled
from capo_ray.critics.canaries import Canary, CanaryJudge
from capo_ray.critics.service import Critics
from capo_ray.records.busy import Busy
from capo_ray.records.ledger import Ledger
from capo_ray.records.tally import Truth, count_group, count_response
from capo_ray.seeds import seed_of
from capo_ray.types import (
    Critique,
    GroupSummary,
    JsonDict,
    Metrics,
    Prompt,
    Rollout,
    Step,
    TrainSequence,
    Verification,
    Verify,
)

FindTruth = Callable[[Prompt, str], Truth]
"""(prompt, response) -> the truth, for tasks that know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorParts:
    """What an aggregator is made of."""

    scheme: Scheme
    between: re.Pattern[str]
    """Delimiter of steps."""
    verify: Verify
    critics: Critics | None
    reference: ReferenceKind
    find_truth: FindTruth | None
    close_verifier: Callable[[], Awaitable[None]] | None = None
    """Ends what `verify` has started."""
    samples: Path
    """Folder of the sample files."""


class Aggregator:
    """One shard."""

    def __init__(
        self, parts: AggregatorParts, *, shard: int, put: Callable[[Any], Any], ledger: Ledger | None = None
    ) -> None:
        """`put` takes a payload to the object store and returns its reference."""
        self._parts = parts
        self._ledger = ledger
        self._shard = shard
        self._put = put
        self._members: dict[str, dict[int, Member]] = {}
        self._samples: dict[int, list[JsonDict]] = {}
        """By step: groups of a later one are closed while an earlier one is trained on."""
        self._open = Busy()
        """Held by every response that is being verified or judged."""
        self._canaries: CanaryJudge | None = None
        if parts.critics is not None:
            self._canaries = CanaryJudge(
                parts.critics,
                reference=parts.reference,
                vote=parts.scheme.vote,
                min_valid_critiques=parts.scheme.min_valid_critiques,
            )

    async def score(self, prompt: Prompt, rollout: Rollout, seed: int, step: int) -> int:
        """Verify and judge one response; its index in the group. `seed` is the run's."""
        steps = steps_of(rollout.text, rollout.char_ends, self._parts.between)
        with self._open:
            member, critiques = await asyncio.gather(
                self._verified(prompt, rollout, steps), self._judge(prompt, rollout, steps, seed, step)
            )
        return self._keep(prompt, replace(member, critiques=critiques))

    async def verify(self, prompt: Prompt, rollout: Rollout) -> int:
        """Verify one response alone, for `judge_group` or `leave_group` later; its index in the group."""
        steps = steps_of(rollout.text, rollout.char_ends, self._parts.between)
        with self._open:
            member = await self._verified(prompt, rollout, steps)
        return self._keep(prompt, member)

    async def _verified(self, prompt: Prompt, rollout: Rollout, steps: tuple[Step, ...]) -> Member:
        """The response as nobody has judged it yet."""
        found = await self._parts.verify(prompt, rollout.whole)
        if not isinstance(found, Verification):
            found = Verification(answer=found)
        return Member(
            rollout=rollout,
            steps=steps,
            critiques=(),
            answer=found.answer,
            extracted=found.extracted,
            reason=found.reason,
        )

    def _keep(self, prompt: Prompt, member: Member) -> int:
        self._members.setdefault(prompt.id, {})[member.rollout.index] = member
        return member.rollout.index

    def sampled(self, prompt: Prompt) -> tuple[Sampled, ...]:
        """The responses that are there, by their index."""
        members = (member for _, member in sorted(self._members[prompt.id].items()))
        return tuple(Sampled(member.answer, len(member.steps)) for member in members)

    async def judge_group(self, prompt: Prompt, seed: int, step: int) -> None:
        """Have the responses judged that were verified alone."""

        async def judge(member: Member) -> Member:
            with self._open:
                critiques = await self._judge(prompt, member.rollout, member.steps, seed, step)
            return replace(member, critiques=critiques)

        for member in await asyncio.gather(*map(judge, tuple(self._members[prompt.id].values()))):
            self._keep(prompt, member)

    def leave_group(self, prompt: Prompt) -> None:
        """Ask no critic about the responses that were verified alone."""
        assert self._parts.critics is not None
        for member in tuple(self._members[prompt.id].values()):
            self._keep(prompt, replace(member, critiques=self._parts.critics.not_asked()))

    async def _judge(
        self, prompt: Prompt, rollout: Rollout, steps: Sequence[Step], seed: int, step: int
    ) -> tuple[Critique, ...]:
        if self._parts.critics is None:
            return ()
        return await self._parts.critics.judge(
            prompt.question,
            reference_of(prompt, self._parts.reference),
            [shown.text for shown in steps],
            response_key=f"{prompt.id}/{rollout.index}",
            seed=seed_of(seed, step - 1, prompt.id, rollout.index, "critique"),
            shorter=shorter_reference(prompt, self._parts.reference),
        )

    def close(self, prompt: Prompt, step: int, num_samples: int) -> GroupSummary:
        """Score the group of `prompt`; `num_samples` of its responses are kept for `write_samples`."""
        members = self._members.pop(prompt.id)
        ordered = [members[index] for index in sorted(members)]
        truths = [self._truth(prompt, member) for member in ordered]
        if self._ledger is not None:
            self._ledger.add(step, prompt, ordered, [truth.steps_right if truth else None for truth in truths])
        score = score_group(ordered, self._parts.scheme)
        kept = [_sample(prompt, step, ordered, score, truths, m) for m in range(min(num_samples, len(members)))]
        self._samples.setdefault(step, []).extend(kept)
        sequences = _sequences(prompt, score)
        return GroupSummary(
            prompt_id=prompt.id,
            prompt_tokens=len(prompt.token_ids),
            lengths=tuple(len(s.prompt_ids) + len(s.token_ids) for s in sequences),
            oldest_version=min(member.rollout.versions[0] for member in members.values()),
            has_credit=score.has_credit,
            tally=count_group(score, truths),
            handle=self._put(sequences),
        )

    async def check(self, prompt: Prompt, rollout: Rollout) -> Metrics:
        """For an evaluation: what is counted of a response, unjudged and not kept."""
        steps = steps_of(rollout.text, rollout.char_ends, self._parts.between)
        with self._open:
            member = await self._verified(prompt, rollout, steps)
        score = score_group([member], replace(self._parts.scheme, advantage="grpo"))
        return count_response(score.members[0], self._truth(prompt, member))

    def _truth(self, prompt: Prompt, member: Member) -> Truth | None:
        find = self._parts.find_truth
        return find(prompt, member.rollout.text) if find else None

    def write_samples(self, step: int, spare: Collection[str] = ()) -> None:
        """Write the samples kept of `step` to their own file, whole or not at all, and the ledger's part of it.

        `spare` names the prompts whose groups were replaced by others.
        """
        if self._ledger is not None:
            self._ledger.write(step, spare)
        samples = self._samples.pop(step, None)
        if not samples:
            return
        self._parts.samples.mkdir(parents=True, exist_ok=True)
        path = self._parts.samples / f"{step:06d}-{self._shard}.jsonl"
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
        partial.rename(path)

    def begin_canaries(self, canaries: Sequence[Canary]) -> None:
        """Have them judged beside the responses; nothing waits for them."""
        if self._canaries is not None:
            self._canaries.begin(canaries)

    async def canaries_done(self) -> None:
        """Returns when all that were begun are judged."""
        if self._canaries is not None:
            await self._canaries.done()

    async def end(self) -> None:
        """Nothing is judged or verified afterwards."""
        if self._canaries is not None:
            await self._canaries.end()
        if self._parts.close_verifier is not None:
            await self._parts.close_verifier()

    def metrics(self) -> Metrics:
        """What was counted since the last call, of responses and of canaries."""
        made = self._parts.critics.metrics() if self._parts.critics else {}
        return made | (self._canaries.take() if self._canaries else {})

    def failure(self) -> str:
        """Why a critique failed since the last call of `metrics`; empty where none did."""
        return self._parts.critics.example() if self._parts.critics else ""

    def totals(self) -> Metrics:
        """How much is under way, and what was counted of critiques since the start, canaries apart."""
        judging = self._parts.critics.totals() if self._parts.critics else {}
        return judging | {
            "busy_s": self._open.seconds,
            "responses_open": float(self._open.running),
            "groups_open": float(len(self._members)),
        }

    def engines(self) -> dict[str, Metrics]:
        """Totals of the critics that are asked from here and are no actors, by name."""
        return self._parts.critics.engines() if self._parts.critics else {}


def _sequences(prompt: Prompt, score: GroupScore) -> tuple[TrainSequence, ...]:
    """What is trained on, if there were two at least to be compared."""
    if score.num_compared < 2:
        return ()
    taught = [(member.rollout, row) for member, row in zip(score.members, score.advantages, strict=True) if row]
    return tuple(
        TrainSequence(
            prompt_ids=prompt.token_ids,
            token_ids=rollout.token_ids,
            advantages=row,
            logprobs=rollout.logprobs,
            source=f"{prompt.id}/{rollout.index}",
        )
        for rollout, row in taught
    )


def _sample(
    prompt: Prompt, step: int, members: Sequence[Member], score: GroupScore, truths: Sequence[Truth | None], m: int
) -> JsonDict:
    """Response m of a group with its credit, as a line of the samples' file."""
    scored, truth, advantages = score.members[m], truths[m], score.advantages[m]
    verdict, rollout = scored.verdict, scored.rollout
    return {
        "step": step,
        "prompt_id": prompt.id,
        "index": rollout.index,
        "question": prompt.question,
        "gold": prompt.answer,
        "solution": prompt.solution,
        "response": rollout.text,
        "finish": rollout.finish,
        "versions": rollout.versions,
        "answer": scored.answer,
        "extracted": members[m].extracted,
        "reason": members[m].reason,
        "steps": [{"start": s.chars[0], "end": s.chars[1], "tokens": s.tokens} for s in scored.steps],
        "steps_right": truth.steps_right if truth else None,
        "critiques": [
            {"critic": c.critic, "outcome": c.outcome, "wrong_steps": c.wrong_steps, "text": c.text}
            for c in scored.critiques
        ],
        "votes": verdict.counts if verdict else None,
        "wrong_steps": verdict.wrong_steps if verdict else None,
        "token_ids": rollout.token_ids,
        "char_ends": rollout.char_ends,
        "token_rewards": scored.token_rewards,
        "advantages": advantages,
    }
