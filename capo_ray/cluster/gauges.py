"""What Ray's metrics show of a run: totals of every actor, and the newest numbers of the run itself.

Each actor publishes its own totals every few seconds from a thread, so that Prometheus sees them while a step lasts;
the driver does the same with what it last wrote to metrics.jsonl. Ray puts `ray_` before every name. Leaves out what
actors count (engines, aggregator) and who reads it (launch/grafana).
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from capo_ray.types import Metrics

EVERY_S = 5.0
"""Seconds between two publications. Ray forgets a gauge that nobody sets for 20 s."""


@dataclass(frozen=True, slots=True)
class Badge:
    """Who an actor is, as Ray's dashboard and Prometheus show it."""

    run: str
    role: str
    actor: str
    duty: str = field(default="", compare=False)
    """What it does and with what, for Ray's dashboard."""
    traced: bool = field(default=False, compare=False)
    """Whether it keeps spans of what it does; see records.trace."""
    critic: str = field(default="", compare=False)
    """Name that it has as a critic, where it is one beside its role."""

    def __str__(self) -> str:
        return f"{self.actor}@{self.run}"

    @property
    def labels(self) -> dict[str, str]:
        return {"run": self.run, "role": self.role, "actor": self.actor}

    @property
    def as_critic(self) -> Badge:
        return Badge(self.run, "critic", self.critic)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric, and which of an actor's totals it is made of."""

    name: str
    total: str
    """Name of the total; where there is a `label`, what those names begin with."""
    meaning: str
    label: str = ""
    """Label that says the rest of a total's name."""

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        return "counter" if self.name.endswith("_total") else "gauge"


SERIES = (
    Series("capo_actor_generated_tokens_total", "generated_tokens", "tokens sampled, responses or critiques"),
    Series("capo_actor_prompt_tokens_total", "prompt_tokens", "prompt tokens of answered requests"),
    Series("capo_actor_cached_tokens_total", "cached_tokens", "those of them that were in the prefix cache"),
    Series("capo_actor_trained_tokens_total", "trained_tokens", "tokens of the sequences that a rank trained on"),
    Series("capo_actor_busy_seconds_total", "busy_s", "seconds with anything to do"),
    Series(
        "capo_actor_stage_seconds_total",
        "stage_s_",
        "seconds by stage: score, update, publish, save, restore; sync",
        "stage",
    ),
    Series("capo_actor_running", "running", "sequences (of a server: requests) that an engine works on"),
    Series("capo_actor_waiting", "waiting", "sequences that wait for an engine"),
    Series("capo_actor_weight_version", "version", "version of the weights"),
    Series("capo_actor_responses_open", "responses_open", "responses that are being verified or judged"),
    Series("capo_actor_groups_open", "groups_open", "groups of which the last response is not scored yet"),
    Series("capo_actor_critic_queue", "critic_queue", "requests that wait for a critic with room"),
    Series("capo_actor_critics_down", "engines_down", "critics that are left alone for their failures"),
    Series("capo_actor_judged_total", "responses", "responses that critics were asked about"),
    Series("capo_actor_critiques_total", "outcome_", "critiques by how they ended", "outcome"),
    Series("capo_actor_retries_total", "retries", "requests to critics that were tried again"),
)
"""All that actors publish, each with the labels `run`, `role` and `actor`. An actor publishes what it has totals of."""


class Instrument(Protocol):
    """As ray.util.metrics has them."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...

    def inc(self, value: float, tags: dict[str, str]) -> None: ...


Make = Callable[[str, str, tuple[str, ...], str], Any]
"""(name, meaning, labels, kind) -> an Instrument."""


def ray_instrument(name: str, meaning: str, labels: tuple[str, ...], kind: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    return (Counter if kind == "counter" else Gauge)(name, description=meaning, tag_keys=labels)


class ActorGauges:
    """Turns totals of actors into metrics. A total that fell began again from 0, as its engine did."""

    def __init__(self, make: Make = ray_instrument) -> None:
        self._make = make
        self._made: dict[str, Instrument] = {}
        self._seen: dict[tuple[Badge, str], float] = {}

    def publish(self, badge: Badge, totals: Mapping[str, float]) -> None:
        for series in SERIES:
            for total, tags in _found(series, totals):
                self._publish(series, (badge, total), totals[total], badge.labels | tags)

    def _publish(self, series: Series, key: tuple[Badge, str], value: float, tags: dict[str, str]) -> None:
        if series.name not in self._made:
            self._made[series.name] = self._make(series.name, series.meaning, tuple(tags), series.kind)
        instrument = self._made[series.name]
        if series.kind == "gauge":
            instrument.set(float(value), tags=tags)
            return
        before, self._seen[key] = self._seen.get(key, 0.0), value
        grown = value - before if value >= before else value
        if grown > 0:
            instrument.inc(float(grown), tags=tags)


def _found(series: Series, totals: Mapping[str, float]) -> list[tuple[str, dict[str, str]]]:
    """The totals of one metric, each with the labels that are its own."""
    if not series.label:
        return [(series.total, {})] if series.total in totals else []
    return [(name, {series.label: name.removeprefix(series.total)}) for name in totals if name.startswith(series.total)]


class RunGauges:
    """The newest of a run's own numbers (records.tracking.Sink), published until it is closed."""

    def __init__(self, run: str, *, make: Make = ray_instrument, every_s: float = EVERY_S) -> None:
        self._tags = {"run": run}
        self._make = make
        self._newest: Metrics = {}
        self._made: dict[str, Instrument] = {}
        self._closed = threading.Event()
        self._every_s = every_s
        threading.Thread(target=self._go_on, daemon=True, name="run gauges").start()

    def write(self, step: int, metrics: Metrics) -> None:
        newest = {gauge_name(name): value for name, value in metrics.items() if not name.startswith("actor/")}
        if not any(name.startswith("evaluation/") for name in metrics):
            newest["capo_step"] = float(step)
        self._newest = self._newest | newest

    def rewind(self, step: int) -> None:
        """Nothing: the numbers of a step that is done again take the place of its first ones."""

    def close(self) -> None:
        self._closed.set()

    def publish(self) -> None:
        for name, value in self._newest.items():
            if not math.isfinite(value):
                continue
            if name not in self._made:
                self._made[name] = self._make(name, "the newest of its name in metrics.jsonl", ("run",), "gauge")
            self._made[name].set(float(value), tags=self._tags)

    def _go_on(self) -> None:
        while not self._closed.wait(self._every_s):
            self.publish()


def gauge_name(metric: str) -> str:
    """Of a number of metrics.jsonl: `critic/valid_share` is `capo_critic_valid_share`."""
    return "capo_" + re.sub(r"\W", "_", metric)


def publish_always(read: Callable[[], Mapping[Badge, Metrics]], *, every_s: float = EVERY_S) -> None:
    """Publish the totals that `read` returns for as long as this process lives."""
    gauges = ActorGauges()

    def go_on() -> None:
        while True:
            for badge, totals in read().items():
                gauges.publish(badge, totals)
            time.sleep(every_s)

    threading.Thread(target=go_on, daemon=True, name="gauges").start()


def publish(badge: Badge | None, totals: Callable[[], Metrics], judging: Callable[[], Metrics] = dict) -> None:
    """Publish an actor's `totals` for as long as this process lives, and as a critic's those of its `judging` where it
    is one too; nothing without a badge."""
    if badge is not None:
        publish_always(lambda: {badge: totals()} | ({badge.as_critic: judging()} if badge.critic else {}))
