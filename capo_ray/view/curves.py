"""Curves by step from `metrics.jsonl`, as options of an ECharts chart. Leaves out: what the numbers mean
(`records.tally`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from capo_ray.records.plots import COLOURS
from capo_ray.records.tracking import PREFIX, is_evaluation
from capo_ray.types import JsonDict

MOST_POINTS = 400
"""Of a curve; a longer one is shown as means over equally many steps."""
CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Reward per token", (("mean", "reward/mean_token_reward"),)),
    (
        "Right",
        (
            ("answer", "outcome/accuracy"),
            ("reasoning steps", "truth/step_accuracy"),
            ("answer and process", "truth/right_answer_and_process"),
        ),
    ),
    ("Loss", (("KL included", "trainer/loss"),)),
    ("Entropy", (("per token", "trainer/entropy"),)),
    ("KL per token", (("to the old policy", "trainer/kl_old"), ("to the reference", "trainer/kl_reference"))),
    ("Gradient norm", (("before clipping", "trainer/grad_norm"),)),
    ("Clipped tokens", (("share", "trainer/clip_fraction"),)),
    ("Learning rate", (("at its last optimizer step", "trainer/learning_rate"),)),
    (
        "Critic against the truth",
        (
            ("precision", "critic/precision"),
            ("recall", "critic/recall"),
            ("precision on canaries", "critic/canary_precision"),
            ("recall on canaries", "critic/canary_recall"),
        ),
    ),
    (
        "Critiques",
        (
            ("valid", "critic/valid_share"),
            ("agreement", "critic/vote_agreement"),
            ("flagged reasoning steps", "critic/flagged_step_share"),
            ("unjudged", "critic/unjudged_share"),
        ),
    ),
    ("Tokens", (("response", "response/mean_tokens"), ("critique", "critic/mean_tokens"))),
    ("Reasoning steps per response", (("mean", "response/mean_steps"),)),
    (
        "Groups and answers",
        (
            ("with credit", "group/credit_share"),
            ("dropped", "group/dropped_share"),
            ("cut off", "response/cut_off_share"),
            ("unverifiable", "outcome/unverifiable_share"),
        ),
    ),
    ("Staleness, in versions", (("oldest sample", "staleness"),)),
    (
        "Seconds",
        (
            ("training step", "seconds/step"),
            ("wait", "seconds/wait"),
            ("update", "seconds/update"),
            ("sync", "seconds/sync"),
            ("collect", "seconds/collect"),
        ),
    ),
    (
        "Tokens per second, by role",
        (
            ("rollout", "speed/rollout_tokens_per_s"),
            ("critic", "speed/critic_tokens_per_s"),
            ("trainer", "speed/trainer_tokens_per_s"),
        ),
    ),
    (
        "Idle share, by role",
        (
            ("rollout", "idle/rollout_share"),
            ("critic", "idle/critic_share"),
            ("trainer", "idle/trainer_share"),
            ("aggregator", "idle/aggregator_share"),
        ),
    ),
)
"""Title, and per curve its label and metric. What a run does not have is left out."""
BY_ACTOR = (("Tokens per second, by actor", "tokens_per_s"), ("Busy share, by actor", "busy_share"))
"""Title, and the metric of which every actor has its own."""
TEXT = "#7d8693"  # to be read on white and on black


class Metrics:
    """The lines of a run's `metrics.jsonl`, of which only new ones are read."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "metrics.jsonl"
        self._at: tuple[int, int] = (0, 0)
        self.lines: list[JsonDict] = []
        self.problem = ""
        """The first line that is none, and how many are; empty where all are."""
        self._num_read = self._num_bad = 0

    def refresh(self) -> bool:
        """Whether anything changed. A file that was cut back is read again; a line that is not whole yet waits."""
        if not self._file.is_file():
            return False
        inode, offset = self._at
        state = self._file.stat()
        if state.st_ino != inode or state.st_size < offset:
            offset, self.lines, self.problem = 0, [], ""
            self._num_read = self._num_bad = 0
        if state.st_size == offset:
            return False
        with self._file.open("rb") as file:
            file.seek(offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._num_read += 1
            self._take(line)
        self._at = state.st_ino, offset + len(whole)
        return bool(whole)

    def _take(self, line: bytes) -> None:
        try:
            self.lines.append(_sound(json.loads(line)))
        except (ValueError, RecursionError) as error:
            self._num_bad += 1
            first = self.problem.partition(" (")[0] or f"line {self._num_read} of {self._file}"
            self.problem = (
                f"{first} ({self._num_bad} of {self._num_read} lines) is no training step's numbers: {error}"[:300]
            )

    @property
    def last(self) -> JsonDict:
        """The newest line that is of a step; empty before there is one."""
        return next((line for line in reversed(self.lines) if not is_evaluation(line)), {})

    @property
    def from_zero(self) -> bool:
        """Whether training steps count from 0, as they once did."""
        return next((line["step"] for line in self.lines if not is_evaluation(line)), 1) == 0

    def names(self) -> list[str]:
        """Of all metrics, evaluations apart."""
        found = {name for line in self.lines for name in line if not name.startswith(PREFIX)}
        return sorted(found - {"step", "time"})

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value); what is null or not there is left out."""
        return [(line["step"], line[name]) for line in self.lines if line.get(name) is not None]


def _sound(line: Any) -> JsonDict:
    """Of a line its step and what are numbers. Raises ValueError where it is none."""
    if not isinstance(line, dict):
        raise ValueError("it is no object")
    numbers = {name: value for name, value in line.items() if type(value) in (int, float) and abs(value) < 1e300}
    if type(line.get("step")) is not int or not 0 <= line["step"] < 1 << 40:
        raise ValueError("it has no step")
    return numbers


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Means over equally many points, each at the last of its steps."""
    width = -(-len(points) // most) or 1
    parts, rest = [], iter(points)
    while part := list(islice(rest, width)):
        parts.append((part[-1][0], fmean(value for _, value in part)))
    return parts


def charts(metrics: Metrics) -> dict[str, JsonDict]:
    """Title -> options of a chart, for all of CHARTS and BY_ACTOR that have a point."""
    names = [name.split("/") for name in metrics.names() if name.startswith("actor/")]
    by_actor = [
        (title, [("/".join(name[1:-1]), "/".join(name)) for name in names if name[-1] == what])
        for title, what in BY_ACTOR
    ]
    made = {title: chart(title, curves, metrics) for title, curves in (*CHARTS, *by_actor)}
    return {title: options for title, options in made.items() if options["series"]}


def chart(title: str, curves: Sequence[tuple[str, str]], metrics: Metrics) -> JsonDict:
    """Evaluations are diamonds of the curve's colour, under its name."""
    series: list[JsonDict] = []
    for number, (label, name) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        for prefix, kind in (("", "line"), (PREFIX, "scatter")):
            if points := thinned(metrics.curve(prefix + name)):
                series.append(_series(label, kind, colour, points))
    axis: JsonDict = {"axisLabel": {"color": TEXT}, "axisLine": {"lineStyle": {"color": TEXT}}}
    faint: dict[str, Any] = {"splitLine": {"lineStyle": {"color": TEXT, "opacity": 0.25}}}
    return {
        "animation": False,
        "title": {"text": title, "textStyle": {"fontSize": 14, "color": TEXT}, "left": 4, "top": 0},
        "tooltip": {"trigger": "axis", "confine": True},
        "legend": {"type": "scroll", "top": 22, "left": 0, "textStyle": {"color": TEXT}, "icon": "roundRect"},
        "grid": {"left": 8, "right": 16, "top": 56, "bottom": 8, "containLabel": True},
        "xAxis": {"type": "value", "min": "dataMin", "max": "dataMax", "minInterval": 1, **axis, **faint},
        "yAxis": {"type": "value", "scale": True, **axis, **faint},
        "series": series,
    }


def _series(name: str, kind: str, colour: str, points: Sequence[tuple[float, float]]) -> JsonDict:
    return {
        "name": name,
        "type": kind,
        "data": [[step, float(f"{value:.5g}")] for step, value in points],
        "itemStyle": {"color": colour, "opacity": 1},
        "lineStyle": {"width": 2},
        "showSymbol": len(points) < 30,
        "symbolSize": 12 if kind == "scatter" else 4,
        **({"symbol": "diamond"} if kind == "scatter" else {}),
    }
