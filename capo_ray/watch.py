"""Signs that a policy games its critic: responses grow, or fall apart into more steps, while fewer answers are right.

Paid for steps that nobody flags, a policy can learn to write more of them (the paper saw it where P is above C). Means
over the last steps are compared with those over the first. Leaves out what is done about it: that is the user's call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import fmean

GROWTH = {"response/mean_tokens": "tokens per response", "response/mean_steps": "steps per response"}
ACCURACY = "outcome/accuracy"


class HackingWatch:
    """Fed with every step's metrics; says something when both signs are there, once per window."""

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
