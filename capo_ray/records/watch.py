"""Signs in a run's metrics that its critic is not to be trusted, or that its policy falls apart. What is done about the
first is the user's call; a policy that stays broken ends the run (`Diverged`), which has nothing left to learn.

A policy that games its critic: paid for steps that nobody flags it can learn to write more of them (the paper saw it
where P is above C), so responses grow, or fall apart into more steps, while fewer answers are right; means over the
last steps are compared with those over the first. A critic that misses the known wrong steps of canaries, or flags
their right ones. And one that treats canaries otherwise than the run's own responses.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Protocol

GROWTH = {"response/mean_tokens": "tokens per response", "response/mean_steps": "steps per response"}
ACCURACY = "outcome/accuracy"


class Watch(Protocol):
    """Fed with every step's metrics."""

    def look(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong after this step, if it is."""
        ...


class HackingWatch:
    """Says something when both signs are there, once per window."""

    def __init__(self, *, window: int = 10, growth: float = 0.2, loss: float = 0.02) -> None:
        """`window` steps are compared with the first `window`; `growth` is a share, `loss` a difference of shares."""
        self._window = window
        self._growth = growth
        self._loss = loss
        self._first: list[dict[str, float]] = []
        self._last: deque[dict[str, float]] = deque(maxlen=window)
        self._quiet = 0

    def look(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong after this step, if it is."""
        seen = {name: metrics[name] for name in (*GROWTH, ACCURACY) if name in metrics}
        if len(seen) <= len(GROWTH):
            return None
        if len(self._first) < self._window:
            self._first.append(seen)
            return None
        self._last.append(seen)
        self._quiet = max(0, self._quiet - 1)
        if len(self._last) < self._window or self._quiet:
            return None
        before, now = self._mean(ACCURACY)
        grown = [
            f"{label} from {old:.1f} to {new:.1f}"
            for name, label in GROWTH.items()
            for old, new in [self._mean(name)]
            if new > (1 + self._growth) * old
        ]
        if not grown or now > before - self._loss:
            return None
        self._quiet = self._window
        return (
            f"the policy may be gaming the critic: {' and '.join(grown)}, while right answers went from {before:.1%} "
            f"to {now:.1%} (means over {self._window} steps). Look at samples/, and try a lower "
            "reward.process_weight or another vote"
        )

    def _mean(self, name: str) -> tuple[float, float]:
        return fmean(step[name] for step in self._first), fmean(step[name] for step in self._last)


class CanaryGap:
    """Says something when critics treat canaries otherwise than the run's own responses, once per `window` canaries:
    what canaries say of a critic is worth nothing then.

    Shares of flagged steps may differ by as much as there are more errors in one than in the other. But canaries are
    chosen for their errors, and nobody flags less than by false alarms alone.
    """

    def __init__(self, *, window: int = 50, valid: float = 0.15, flagged: float = 0.15) -> None:
        """`valid` and `flagged` are differences of shares that are borne."""
        self._window = window
        self._valid = valid
        self._flagged = flagged
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def look(self, metrics: Mapping[str, float]) -> str | None:
        canaries = metrics.get("critic/canaries")
        if not canaries:
            return None
        for name in _COMPARED:
            if (share := metrics.get(f"critic/{name}")) is not None:
                self._sums[name] = self._sums.get(name, 0.0) + canaries * share
                self._counts[name] = self._counts.get(name, 0.0) + canaries
        if max(self._counts.values(), default=0.0) < self._window:
            return None
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        apart = [found for found in (self._validity(means), self._flags(means)) if found]
        if not apart:
            return None
        return (
            f"critics treat canaries and the run's own responses differently: {' and '.join(apart)}. What "
            "canaries say of them (critic/canary_precision, critic/canary_recall) does not hold for the run: look at "
            "critiques/, and take canaries that are more like its problems"
        )

    def _validity(self, means: Mapping[str, float]) -> str | None:
        there, here = means.get("canary_valid_share"), means.get("valid_share")
        if there is None or here is None or abs(there - here) <= self._valid:
            return None
        return f"{there:.0%} of the critiques of canaries are valid and {here:.0%} of the run's"

    def _flags(self, means: Mapping[str, float]) -> str | None:
        there, here = means.get("canary_flagged_step_share"), means.get("flagged_step_share")
        if there is None or here is None:
            return None
        least = means.get("canary_false_alarm_share", 0.0)
        if least - self._flagged <= here <= there + self._flagged:
            return None
        return f"{there:.0%} of the steps of canaries are flagged and {here:.0%} of the run's"


_COMPARED = (
    *("canary_valid_share", "canary_flagged_step_share", "canary_false_alarm_share"),
    *("valid_share", "flagged_step_share"),
)


class Diverged(RuntimeError):
    """The policy has been broken for so many steps in a row that the run ends."""


class DivergenceWatch:
    """Says something at the first step of a row in which the policy is broken, and again every tenth one. A step is
    broken when no answer is right although some were before, when no response came to its end, when nothing has credit,
    or when gradient or ratio are out of all proportion."""

    GRADIENT, RATIO, HISTORY = 100.0, 1e4, 10
    """A norm this many times the median of all before, once there are `HISTORY`; a probability this many times the old
    one."""

    def __init__(self, *, stop_after: int) -> None:
        """More than `stop_after` broken steps in a row raise Diverged; 0: they never do."""
        self._stop_after = stop_after
        self._in_a_row = 0
        self._norms: list[float] = []
        self._was_right = False

    def look(self, metrics: Mapping[str, float]) -> str | None:
        """Raises Diverged."""
        signs = list(self._signs(metrics))
        self._was_right |= metrics.get(ACCURACY, 0.0) > 0
        norm = metrics.get("trainer/grad_norm", 0.0)
        if norm > 0 and not signs:
            insort(self._norms, norm)
        self._in_a_row = self._in_a_row + 1 if signs else 0
        if self._stop_after and self._in_a_row > self._stop_after:
            raise Diverged(
                f"the policy has been broken for {self._in_a_row} steps in a row ({'; '.join(signs)}): more than "
                f"stop_after_broken_steps {self._stop_after}. Move later checkpoints away and go on from one before, "
                "with a lower trainer.learning_rate"
            )
        if self._in_a_row % 10 != 1:
            return None
        return f"the policy may be falling apart: {'; '.join(signs)}"

    def _signs(self, metrics: Mapping[str, float]) -> Iterator[str]:
        if self._was_right and metrics.get(ACCURACY) == 0:
            yield "no answer is right any more"
        if metrics.get("response/cut_off_share") == 1:
            yield "every response is cut off at rollout.max_response_tokens"
        if metrics.get("group/credit_share") == 0:
            yield "no token has an advantage"
        norm, before = metrics.get("trainer/grad_norm", 0.0), self._norms
        if len(before) >= self.HISTORY and norm > self.GRADIENT * (usual := before[len(before) // 2]):
            yield f"the gradient's norm is {norm:.3g}, {usual:.3g} is usual"
        if (ratio := metrics.get("trainer/ratio_max", 0.0)) > self.RATIO:
            yield f"a token is {ratio:.3g} times as probable as it was under the old policy"


class NonfiniteWatch:
    """Says something at every step that had a gradient which is not finite. Such a step moves nothing; the next one has
    other responses and may do. Several in a row say that it is the weights."""

    def __init__(self, *, stop_after: int, run_dir: Path) -> None:
        """So many such steps in a row raise Diverged; `run_dir` is named in what is said."""
        self._stop_after = stop_after
        self._run_dir = run_dir
        self._in_a_row = 0

    def look(self, metrics: Mapping[str, float]) -> str | None:
        """Raises Diverged."""
        count = metrics.get("trainer/nonfinite_steps", 0.0)
        self._in_a_row = self._in_a_row + 1 if count else 0
        if not count:
            return None
        found = (
            f"{count:.0f} optimizer step{'' if count == 1 else 's'} skipped, the gradient was not finite (in "
            f"{self._in_a_row} of at most {self._stop_after} steps in a row: trainer.stop_after_nonfinite)"
        )
        look = (
            "Look at trainer/ratio_max, trainer/kl_reference and trainer/grad_norm of the steps before; "
            f"python -m capo_ray.replay {self._run_dir} names the response"
        )
        if self._in_a_row >= self._stop_after:
            raise Diverged(f"{found}. {look}. Then go on from a checkpoint with a lower trainer.learning_rate")
        return f"{found}. {look}"


class CanaryWatch:
    """Says something when precision or recall on the last canaries is below its floor, once per `window` of them."""

    def __init__(self, *, min_precision: float, min_recall: float, window: int = 50) -> None:
        self._floors = {"precision": min_precision, "recall": min_recall}
        self._window = window
        self._last: deque[Mapping[str, float]] = deque()

    def look(self, metrics: Mapping[str, float]) -> str | None:
        if not metrics.get("critic/canaries"):
            return None
        self._last.append(metrics)
        if self._sum("canaries") < self._window:
            return None
        hits = self._sum("canary_hits")
        rates = {"precision": (hits, self._sum("canary_flagged")), "recall": (hits, self._sum("canary_wrong"))}
        low = [
            f"{name} {part / whole:.2f} (critic.canaries.min_{name} {self._floors[name]:g})"
            for name, (part, whole) in rates.items()
            if whole and part / whole < self._floors[name]
        ]
        if not low:
            while self._sum("canaries") - self._last[0]["critic/canaries"] >= self._window:
                self._last.popleft()
            return None
        counted = f"{self._sum('canaries'):.0f} canaries"
        self._last.clear()
        return (
            f"the critic is below its floor on the last {counted}: {' and '.join(low)}. Look at what it says in "
            "samples/ and critiques/, and compare it with python -m capo_ray.critic_bench"
        )

    def _sum(self, name: str) -> float:
        return sum(step[f"critic/{name}"] for step in self._last)
