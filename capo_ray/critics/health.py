"""Whether an engine is sent requests: a machine of four states. Pure; the clock is whoever asks.

    up       it is sent requests
    resting  it said that it is busy: it is left alone until then, and after that sent one request, the probe
    probing  the probe is under way, and decides
    broken   it failed too often in a row, or failed the probe: it is left alone until it says that it is there

    up, resting, broken --busy--> resting      resting --a request is sent--> probing
    any --fails too often in a row--> broken   probing --the probe: answers, fails, is given up--> up, broken, resting
    broken --any answer--> up                  resting, probing --answers to what was sent before--> as it is

Leaves out how fast an engine is (pace), and who asks a broken one whether it is there (asking).
"""

from __future__ import annotations

from typing import Literal

State = Literal["up", "resting", "probing", "broken"]


class Health:
    """Of one engine. Times are seconds of one clock."""

    def __init__(self, *, break_after: int, break_pause_s: float) -> None:
        """`break_after` failures in a row break it; it is left alone for `break_pause_s` then, or where it is busy and
        does not say for how long."""
        self.state: State = "up"
        self.failures_in_row = 0
        self.down_since = 0.0
        """When it was last up, or answered."""
        self._break_after, self._pause_s = break_after, break_pause_s
        self._until = 0.0

    @property
    def is_up(self) -> bool:
        return self.state == "up"

    @property
    def is_broken(self) -> bool:
        return self.state == "broken"

    def admits(self, now: float) -> bool:
        """Whether a request may be sent."""
        return self.state == "up" or (self.state == "resting" and now >= self._until)

    def pause_s(self, now: float) -> float:
        """Seconds that it is left alone yet."""
        return 0.0 if self.is_up else max(0.0, self._until - now)

    def sent(self) -> bool:
        """A request is sent. Whether it is the probe."""
        if self.state == "resting":
            self.state = "probing"
        return self.state == "probing"

    def given_up(self, *, probe: bool) -> None:
        """A request ended without news of it."""
        if probe and self.state == "probing":
            self.state = "resting"

    def answered(self, now: float, *, probe: bool) -> None:
        self.failures_in_row, self.down_since = 0, now
        if probe or self.is_broken:
            self.state = "up"

    def failed(self, now: float, *, probe: bool) -> bool:
        """Whether it is broken by that."""
        self.failures_in_row += 1
        if self.is_broken or not (probe or self.failures_in_row >= self._break_after):
            return False
        self._down(now, "broken", self._pause_s)
        return True

    def busy(self, now: float, wait_s: float | None, *, probe: bool) -> None:
        """It takes no more for `wait_s`. A probe that is under way still decides."""
        self._down(now, "probing" if self.state == "probing" and not probe else "resting", wait_s)

    def is_there(self) -> None:
        """It answered a question that was no request."""
        self.state, self.failures_in_row = "up", 0

    def is_away(self, now: float) -> None:
        """A broken one did not."""
        self._until = now + self._pause_s

    def _down(self, now: float, state: State, pause_s: float | None) -> None:
        if self.is_up:
            self.down_since = now
        self.state, self._until = state, now + (self._pause_s if pause_s is None else pause_s)
