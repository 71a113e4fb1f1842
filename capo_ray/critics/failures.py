"""How many critiques may fail: decided at the end of a step, over whole steps.

Failures hang together: a hard problem has many of them, an easy one none. So they are counted over the last whole step
at least, and over enough prompts; in between nothing is decided, and the order in which critiques arrive changes
nothing. The first step end above the limit is a warning, the second in a row the end of the run; but a critic that has
never replied ends it at the end of the first step. Leaves out outages, which have a limit of their own (service).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from capo_ray.critics.service import CriticsFailed
from capo_ray.types import FAILED_OUTCOMES, Metrics


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    prompts: int
    finished: float
    failed: Counter[str]


class FailureLimit:
    """Fed with every step of a run, in order."""

    def __init__(self, *, max_share: float, prompts: int) -> None:
        """`max_share` of the finished critiques of the last whole steps that have `prompts` prompts may fail; 1 means
        all."""
        self._max_share = max_share
        self._prompts = prompts
        self._last: deque[_Step] = deque()
        self._replied = False
        self._was_above = False

    def look(self, step: int, groups: Iterable[Metrics]) -> str | None:
        """What is to be said after `step`, given the counts of its groups (records.tally.count_group), replaced ones
        too.

        Raises CriticsFailed.
        """
        made = _count(step, groups)
        if not made.finished or self._max_share >= 1:
            return None
        self._replied = self._replied or _any_reply(made)
        self._last.append(made)
        while sum(one.prompts for one in self._last) - self._last[0].prompts >= self._prompts:
            self._last.popleft()
        if not self._replied:
            raise CriticsFailed(f"no critic has replied once: {self._counted()}")
        enough = sum(one.prompts for one in self._last) >= self._prompts
        above = enough and self._failed().total() > self._max_share * self._finished()
        if above and self._was_above:
            raise CriticsFailed(f"{self._counted()}; {self._max_share:.0%} may (critic.max_failed_share)")
        self._was_above = above
        if not above:
            return None
        return (
            f"{self._counted()}; {self._max_share:.0%} may (critic.max_failed_share), and the run ends if the next "
            "step is no better. Look at what critics say in samples/ and critiques/"
        )

    def _finished(self) -> float:
        return sum(one.finished for one in self._last)

    def _failed(self) -> Counter[str]:
        return sum((one.failed for one in self._last), Counter())

    def _counted(self) -> str:
        failed, first, last = self._failed(), self._last[0].number, self._last[-1].number
        kinds = ", ".join(
            f"{kind} {count:.0f}" for kind, count in sorted(failed.items(), key=lambda one: (-one[1], one[0]))
        )
        steps = f"step {last}" if first == last else f"steps {first} to {last}"
        return f"{failed.total():.0f} of the {self._finished():.0f} critiques of {steps} failed ({kinds})"


def _count(step: int, groups: Iterable[Metrics]) -> _Step:
    asked = [group for group in groups if group.get("fresh_critiques")]
    failed: Counter[str] = Counter()
    for group in asked:
        failed.update(
            {kind: group[f"failed_{kind}"] for kind in sorted(FAILED_OUTCOMES) if group.get(f"failed_{kind}")}
        )
    return _Step(step, len(asked), sum(group["fresh_critiques"] for group in asked), failed)


def _any_reply(step: _Step) -> bool:
    silent = step.failed["timeout"] + step.failed["engine_error"]
    return silent < step.finished
