"""The three roles an engine can play, as protocols; one file per (role, backend) stands beside this one.

Whoever drives an engine knows only these. Parsing of critiques is `credit`'s, batching and losses are `learn`'s,
placement and remote calls are `cluster`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from capo_ray.types import Metrics, Prompt, Rollout, Sampling, TrainSequence, Update

Message = Mapping[str, str]


MOST_TOKENS = 2**31 - 1
"""What the columns of a ledger hold."""


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise ValueError(f"{name} must be a number of tokens, got {str(value)[:40]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One reply of a critic, not yet parsed."""

    text: str
    truncated: bool
    num_tokens: int

    def __post_init__(self) -> None:
        """Whoever made it: it goes into metrics, budgets and files."""
        if not isinstance(self.text, str):
            raise ValueError(f"a completion's text must be a text, got {type(self.text).__name__}")
        _check_count("num_tokens", self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """What one request to a critic brought back."""

    completions: tuple[Completion, ...]
    prompt_tokens: int
    cached_tokens: int

    def __post_init__(self) -> None:
        _check_count("prompt_tokens", self.prompt_tokens)
        _check_count("cached_tokens", self.cached_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """What an engine says of the weights it runs on; compared with what the trainer sent."""

    engine: str
    version: int
    checksum: str


Stage = Literal["greet", "connect", "start", "update", "finish"]
"""Of a weight transfer: two at its opening, the others at each sync; "update" once per piece of the weights."""


Part = Literal["weights", "kv_cache"]
"""Of an engine's memory, as it is given back and taken again."""
WHOLE: tuple[Part, ...] = ("weights", "kv_cache")


class WeightsChanged(RuntimeError):
    """Something woke with other weights than it fell asleep with."""


class NotItsTurn(RuntimeError):
    """What was asked for needs memory that others may have now."""


class PromptTooLong(ValueError):
    """The prompt and the reply asked for do not fit the engine's window."""


class RequestRejected(RuntimeError):
    """The engine is well and would refuse this request again."""


class EngineBusy(RuntimeError):
    """The engine is well and takes no more for now; `retry_after_s`: as long as it asks to be left alone."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Sleeping(Protocol):
    """What holds a GPU for a while and leaves it to others then."""

    async def sleep(self) -> None:
        """Give its memory back. What it is asked about then is given up."""
        ...

    async def wake(self, parts: Collection[Part]) -> None:
        """Take `parts` of its memory again. Weights that no sync will bring are those from before, or it raises
        WeightsChanged; others are there for the sync to fill, and nothing may be sampled before."""
        ...


class RolloutEngine(Sleeping, Protocol):
    """Samples responses from the policy. One whose base judges completes as a CriticEngine does, and has the
    totals of that in `judging`, a method like `metrics`."""

    name: str
    version: int
    """Of the weights that it samples from."""

    @property
    def dead(self) -> bool:
        """Whether the engine's own process ended without having been told to; its actor ends then too."""
        ...

    async def pulse(self) -> None:
        """Returns when that process has answered, which a frozen one does not; its actor is ended then."""
        ...

    def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        """Sample one response per entry of `seeds` (index in the group -> sampling seed); yield each as it finishes."""
        ...

    async def take_weights(self, stage: Stage, given: Mapping[str, Any]) -> WeightReceipt | None:
        """One stage of a weight transfer; `given` is what the transport says at it, and the version at the end.

        "finish" returns the receipt: version and checksum of the weights that the next token will be sampled from.
        """
        ...

    def metrics(self) -> Metrics:
        """Totals since the start; any thread may ask."""
        ...

    def close(self) -> None: ...


class CriticEngine(Protocol):
    """Completes chat messages; knows nothing of steps or votes. One on this run's own GPUs is Sleeping too."""

    name: str

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
        """`n` completions of one conversation. Raises PromptTooLong when it does not fit the window,
        RequestRejected, EngineBusy, and whatever it likes for other faults.

        Completion i is sampled from `seed` + i, so that some can be asked for now and the others later.
        """
        ...

    def metrics(self) -> Metrics:
        """Totals since the start; nothing where somebody else counts them. Any thread may ask."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBatch:
    """One rank's share of one update of the policy.

    `micro_batches` holds, per optimizer step and per micro-batch, the sequences of this rank. Every rank has the same
    number of optimizer steps and of micro-batches in each, so that collectives match: where a rank has no sequence left
    the micro-batch is empty. `denominators` holds one number per optimizer step, of all ranks together (see
    learn.batch).
    """

    micro_batches: Sequence[Sequence[Sequence[TrainSequence]]]  # [optimizer step][micro-batch][sequence]
    denominators: Sequence[float]  # [optimizer step]
    centre: float = 0.0
    spread: float = 1.0
    """Every advantage is trained on as (advantage - centre) / spread."""


class TrainEngine(Protocol):
    """One rank of the trainer. Every method is collective: all ranks call it, in the same order."""

    step: int
    """Optimizer steps taken or skipped."""

    def score(self, mine: Sequence[TrainSequence] | None, *, old: bool) -> None:
        """Make log-probabilities that the next update compares with: the reference's, and with `old` the policy's own.

        `mine`: this rank's share of what may be in it, or None where that was lost. An update makes what it lacks.
        """
        ...

    def update(self, batch: UpdateBatch) -> Update:
        """An optimizer step whose gradient is not finite on any rank moves nothing on all of them, and is counted as
        "nonfinite_steps"."""
        ...

    def weights(self) -> Iterator[tuple[str, Any]]:
        """(name as in the model's folder, a copy of the full tensor) of every parameter, for a weight sync."""
        ...

    def save(self, path: str) -> None: ...

    def restore(self, path: str) -> None: ...

    def sleep(self) -> None:
        """Give back what weights, gradients and the optimizer hold; nothing else may be asked until `wake`."""
        ...

    def wake(self) -> None:
        """All of it is as it was, or this raises WeightsChanged."""
        ...

    def give_back(self) -> None:
        """What an allocator keeps for later, awake too: others have need of it before."""
        ...
