"""How fast an engine is, as measured on its answers, and what a request may take by that. Pure.

Seconds per token of the longest reply, at the load that it was measured at. Leaves out whether the engine is there at
all (health), and the bounds that are set on times (routing).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_NEWS = 0.2
"""Weight of the newest answer."""
_TOLERANCE = 1.5
"""Times the fastest engine's pace that count as equally fast."""
_TINY = 1e-9


@dataclass(slots=True)
class Pace:
    """Of one engine."""

    per_token_s: float | None = None
    """Seconds that a token of a reply takes, a running mean over answers; None: no answer yet."""
    load: float = 0.0
    """Requests in flight while that was measured, the same mean."""
    doubt: float = 1.0
    """Times slower than measured that it is taken to be since its last answer: doubled by timeouts."""
    doubted_at: float = 0.0
    """When that was doubled last."""

    def learn(self, seconds: float, tokens: int, in_flight: int) -> None:
        """An answer whose longest reply had `tokens` took `seconds` while `in_flight` requests ran."""
        pace = seconds / max(tokens, 1)
        if self.per_token_s is None or self.doubt > 1:
            self.per_token_s, self.load, self.doubt = pace, in_flight, 1.0
        else:
            self.per_token_s += _NEWS * (pace - self.per_token_s)
            self.load += _NEWS * (in_flight - self.load)

    def timed_out(self, now: float, *, sent_at: float) -> None:
        """It counts as half as fast until an answer tells; requests that ran side by side tell it once."""
        if sent_at >= self.doubted_at:
            self.doubt, self.doubted_at = 2 * self.doubt, now

    def expected_s(self, tokens: int, in_flight: int) -> float | None:
        """Seconds for a reply of `tokens` while `in_flight` requests run; None: nothing is known."""
        if self.per_token_s is None:
            return None
        return tokens * self.per_token_s * self.doubt * max(1.0, in_flight / max(self.load, 1.0))

    def share(self, others: Iterable[Pace]) -> float:
        """Of what the fastest is sent at a time: less than 1 where this one is clearly slower, so that it is not the
        last to be done."""
        if self.per_token_s is None:
            return 1.0
        fastest = min(
            (other.per_token_s for other in others if other.per_token_s is not None), default=self.per_token_s
        )
        return min(1.0, _TOLERANCE * max(fastest, _TINY) / max(self.per_token_s, _TINY))
