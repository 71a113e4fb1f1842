"""Signs in a run's metrics that its critic is not to be trusted. What is done about them is the user's call.

A policy that games its critic: paid for steps that nobody flags it can learn to write more of them (the paper saw it
where P is above C), so responses grow, or fall apart into more steps, while fewer answers are right; means over the
last steps are compared with those over the first. And a critic that misses the known wrong steps of canaries, or flags
their right ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
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
