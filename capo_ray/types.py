"""What flows through the system, from a prompt to an update.

Every object is frozen and checks its lengths when it is made, so that a token list which does not fit its text fails
where it was born and not inside the loss. `T` is the number of response tokens of one rollout, the end-of-sequence
token included; `S` is the number of its steps. Leaves out: how anything here is computed (see `credit`) and tensors
(see `learn.batch`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

Span = tuple[int, int]
"""Half-open range [start, end)."""

Finish = Literal["stop", "length"]
Answer = Literal["correct", "wrong", "unverifiable"]
CritiqueOutcome = Literal[
    "ok",  # the only outcome that votes
    "unreadable",
    "truncated",
    "out_of_range",
    "timeout",
    "engine_error",
    "refused",
    "not_asked",  # adaptive voting, or the budget
    "cancelled",  # given up, since no engine of the critic was up
]
FAILED_OUTCOMES: frozenset[CritiqueOutcome] = frozenset(
    {"unreadable", "truncated", "out_of_range", "timeout", "engine_error"}
)
"""Outcomes that count in the failure share; `refused`, `not_asked` and `cancelled` are nobody's failure."""
REPLIED_OUTCOMES: frozenset[CritiqueOutcome] = frozenset({"ok", "unreadable", "truncated", "out_of_range"})
"""Outcomes of a critic that replied: the parser decides which."""
UNASKED_OUTCOMES: frozenset[CritiqueOutcome] = frozenset({"not_asked", "cancelled"})
"""Outcomes of what no critic has seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem, ready to be sampled from."""

    id: str
    question: str
    token_ids: tuple[int, ...]
    """The chat-templated question, as the policy sees it."""
    answer: str
    """The gold final answer, for the verifier."""
    solution: str = ""
    """The reference solution, for the critic; empty where the data has none."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.id!r} has no tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response and what the sampler knew about it."""

    prompt_id: str
    index: int
    """Position in its group, from 0."""
    text: str
    """What `token_ids` decode to; special tokens are left out, but marks of thoughts."""
    finish: Finish
    token_ids: tuple[int, ...]  # [T]
    logprobs: tuple[float, ...]  # [T] under the distribution that was sampled from
    char_ends: tuple[int, ...]  # [T] code point where the next token starts; see credit.tokens
    versions: tuple[int, ...]
    """Policy versions that sampled it, ascending; one unless weights moved in flight."""
    opened: str = ""
    """The mark of a thought that its prompt left open; see credit.thoughts."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("token_ids", "logprobs", "char_ends")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"rollout {self.prompt_id!r}/{self.index}: lengths differ: {lengths}")
        if not self.versions:
            raise ValueError(f"rollout {self.prompt_id!r}/{self.index} names no policy version")
        if self.char_ends and self.char_ends[-1] != len(self.text):
            raise ValueError(
                f"rollout {self.prompt_id!r}/{self.index}: char_ends closes at {self.char_ends[-1]}, "
                f"its text has {len(self.text)} characters"
            )

    @property
    def whole(self) -> str:
        """What is verified: the text, begun inside a thought where its prompt opened one."""
        return self.opened + self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a response. `chars` tile the text; `tokens` are those whose first character lies in `chars`."""

    text: str
    """What a critic is shown: without the trailing delimiter."""
    chars: Span
    tokens: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """One critic's reply about one response, parsed."""

    text: str
    outcome: CritiqueOutcome
    wrong_steps: tuple[int, ...] = ()
    """Ascending step indices; meaningful only when `outcome` is "ok"."""
    says_correct: bool | None = None
    """The critic's own Yes/No. Kept and compared, never voted on."""
    num_dropped: int = 0
    """Out-of-range indices that stood beside good ones."""
    critic: str = ""
    num_tokens: int = 0
    """Tokens the critic generated for it."""
    cached: bool = False
    kept_tokens: int = 0
    """What it had cost, where it came from a cache; `num_tokens` is 0 then."""
    seed: int | None = None
    """Its sampling seed; None where no critic was asked for it."""
    prompt_hash: str = ""
    """Of the conversation that the critic was shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found out about one response. `reason` says why, unless it is correct."""

    answer: Answer
    extracted: str | None = None
    """What was taken for its final answer."""
    reason: str | None = None


Verify = Callable[[Prompt, str], Awaitable[Answer | Verification]]
"""(prompt, response) -> verdict, with what it is about or without; never raises for what a response says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The critiques of one response, voted. Step s pays the share `weights[s]` in [0, 1] of the process penalty."""

    counts: tuple[int, ...]  # [S] valid critiques that flag the step
    weights: tuple[float, ...]  # [S]
    num_valid: int
    num_invalid: int

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.weights):
            raise ValueError(f"verdict lengths differ: counts {len(self.counts)}, weights {len(self.weights)}")

    @property
    def wrong_steps(self) -> tuple[int, ...]:
        return tuple(s for s, weight in enumerate(self.weights) if weight > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A rollout with its steps, critiques, verdict and token rewards."""

    rollout: Rollout
    steps: tuple[Step, ...]
    critiques: tuple[Critique, ...]
    verdict: Verdict | None
    """None: unjudged (too few valid critiques, or the algorithm asks for none)."""
    answer: Answer
    token_rewards: tuple[float, ...]  # [T]

    def __post_init__(self) -> None:
        if len(self.token_rewards) != len(self.rollout.token_ids):
            raise ValueError(
                f"rollout {self.rollout.prompt_id!r}/{self.rollout.index}: {len(self.token_rewards)} token rewards "
                f"for {len(self.rollout.token_ids)} tokens"
            )
        if odd := [t for t, reward in enumerate(self.token_rewards) if not isfinite(reward)]:
            raise ValueError(
                f"rollout {self.rollout.prompt_id!r}/{self.rollout.index}: the reward of token {odd[0]} is "
                f"{self.token_rewards[odd[0]]}, and of {len(odd)} tokens not finite: look at reward.* and at a vote of "
                "your own"
            )
        if self.verdict is not None and len(self.verdict.weights) != len(self.steps):
            raise ValueError(
                f"rollout {self.rollout.prompt_id!r}/{self.rollout.index}: a verdict on "
                f"{len(self.verdict.weights)} steps for {len(self.steps)} steps"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSequence:
    """What the trainer needs of one response; the mask is explicit: prompt tokens carry no loss, response tokens do."""

    prompt_ids: tuple[int, ...]  # [P]
    token_ids: tuple[int, ...]  # [T]
    advantages: tuple[float, ...]  # [T]
    logprobs: tuple[float, ...]  # [T] the sampler's
    loss_mask: tuple[bool, ...] = ()  # [T]; empty means all of them
    source: str = ""
    """PROMPT_ID/INDEX of the response, for who asks which one it is; nothing is computed from it."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("token_ids", "advantages", "logprobs")}
        if self.loss_mask:
            lengths["loss_mask"] = len(self.loss_mask)
        if len(set(lengths.values())) != 1:
            raise ValueError(f"sequence lengths differ: {lengths}")

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one call of the trainer did."""

    metrics: dict[str, float]
    version: int
    """Policy version after it: the number of weight syncs that the rollout workers will have seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a model is sampled; `seeds` gives one response each."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()


Metrics = dict[str, float]
JsonDict = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """What the driver learns of a group; the payload stays in the object store behind `handle`."""

    prompt_id: str
    prompt_tokens: int
    lengths: tuple[int, ...]
    """Tokens, prompt included, of each response that is trained on; empty where the group was dropped."""
    oldest_version: int
    """The oldest policy version that sampled any token of it."""
    has_credit: bool
    tally: Metrics
    """Sums over the group, to be added up; `records.tally.rates` turns them into means and rates."""
    handle: Any
    """Reference to the tuple of TrainSequence that `lengths` speaks of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The groups of one step in prompt order."""

    step: int
    """Of the run, from 1. It trains policy version `step` - 1, and makes version `step` of it."""
    groups: tuple[GroupSummary, ...]
    spare: tuple[GroupSummary, ...] = ()
    """Groups that were sampled too and are not trained on, since no token of theirs has an advantage."""
    seconds: float
    """From the first request to the last verdict."""

    @property
    def oldest_version(self) -> int:
        return min(group.oldest_version for group in self.groups)
