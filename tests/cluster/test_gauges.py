"""What is published of totals and of a run's numbers, with a fake of Ray's metrics."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from capo_ray.cluster.gauges import SERIES, ActorGauges, Badge, RunGauges, gauge_name, publish, publish_always
from capo_ray.types import Metrics

BADGE = Badge("night", "rollout", "rollout-1")
MANUAL = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"


@dataclass
class Registry:
    """The value of every (name, labels); as strict as Ray's: a counter takes no 0, and all labels are there."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def make(self, name: str, meaning: str, labels: tuple[str, ...], kind: str) -> Instrument:
        self.made.append(name)
        return Instrument(self, name, labels, kind)


@dataclass
class Instrument:
    registry: Registry
    name: str
    labels: tuple[str, ...]
    kind: str

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self.kind == "gauge"
        self.registry.values[self._key(tags)] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert self.kind == "counter" and value > 0
        key = self._key(tags)
        self.registry.values[key] = self.registry.values.get(key, 0.0) + value

    def _key(self, tags: dict[str, str]) -> tuple[str, str]:
        assert set(tags) == set(self.labels)
        return self.name, ",".join(tags.values())


def test_totals_become_counters_and_gauges() -> None:
    registry = Registry()
    gauges = ActorGauges(registry.make)
    for tokens, running in ((100, 4), (100, 5), (130, 0)):
        gauges.publish(BADGE, {"generated_tokens": tokens, "running": running, "of_no_interest": 1.0})
    assert registry.values == {
        ("capo_actor_generated_tokens_total", "night,rollout,rollout-1"): 130.0,
        ("capo_actor_running", "night,rollout,rollout-1"): 0.0,
    }
    assert len(registry.made) == 2  # each once


def test_a_total_that_begins_again_goes_on() -> None:
    """As an actor's does whose engine was started again."""
    registry = Registry()
    gauges = ActorGauges(registry.make)
    for tokens in (100, 30, 50):
        gauges.publish(BADGE, {"generated_tokens": tokens})
    assert list(registry.values.values()) == [150.0]


def test_actors_of_one_process_are_kept_apart() -> None:
    registry = Registry()
    gauges = ActorGauges(registry.make)
    other = Badge("night", "critic", "judge at host from aggregator-0")
    for tokens in (10, 20):
        gauges.publish(BADGE, {"generated_tokens": tokens})
        gauges.publish(other, {"generated_tokens": 10 * tokens})
    assert list(registry.values.values()) == [20.0, 200.0]


def test_the_rest_of_a_name_is_a_label() -> None:
    registry = Registry()
    ActorGauges(registry.make).publish(BADGE, {"outcome_ok": 5, "outcome_timeout": 1, "outcome_refused": 0})
    name, who = "capo_actor_critiques_total", "night,rollout,rollout-1"
    assert registry.values == {(name, f"{who},ok"): 5.0, (name, f"{who},timeout"): 1.0}


def test_the_newest_numbers_of_a_run() -> None:
    registry = Registry()
    gauges = RunGauges("night", make=registry.make, every_s=3600)
    gauges.write(6, {"critic/valid_share": 0.9, "staleness": 1.0, "actor/rollout-0/busy_share": 0.5})
    gauges.write(7, {"staleness": 0.0, "trainer/loss": float("nan")})
    gauges.write(8, {"evaluation/outcome/accuracy": 0.25})
    gauges.publish()
    assert registry.values == {
        ("capo_critic_valid_share", "night"): 0.9,
        ("capo_staleness", "night"): 0.0,
        ("capo_evaluation_outcome_accuracy", "night"): 0.25,
        ("capo_step", "night"): 7.0,
    }
    gauges.close()


def test_a_run_publishes_until_it_is_closed() -> None:
    seen = threading.Event()

    class Seen(Registry):
        def make(self, name: str, meaning: str, labels: tuple[str, ...], kind: str) -> Instrument:
            seen.set()
            return super().make(name, meaning, labels, kind)

    gauges = RunGauges("night", make=Seen().make, every_s=0.01)
    gauges.write(0, {"staleness": 1.0})
    assert seen.wait(10)
    gauges.close()


def test_an_actor_publishes_at_once_and_again() -> None:
    asked = threading.Semaphore(0)

    def read() -> dict[Badge, dict[str, float]]:
        asked.release()
        return {}

    publish_always(read, every_s=0.01)
    assert asked.acquire(timeout=10) and asked.acquire(timeout=10)


def test_who_judges_too_is_published_as_a_critic_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Callable[[], Mapping[Badge, Metrics]]] = []
    monkeypatch.setattr("capo_ray.cluster.gauges.publish_always", read.append)
    for badge in (None, BADGE, replace(BADGE, critic="critic-1")):
        publish(badge, lambda: {"running": 1.0}, lambda: {"running": 2.0})
    sampling, both = read
    assert sampling() == {BADGE: {"running": 1.0}}
    assert both() == {BADGE: {"running": 1.0}, Badge("night", "critic", "critic-1"): {"running": 2.0}}


def test_names() -> None:
    names = [series.name for series in SERIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"capo_actor_[a-z_]+", name) for name in names)
    assert not any(gauge_name(metric).startswith("capo_actor_") for metric in ("outcome/accuracy", "staleness"))


def test_the_manual_has_every_metric() -> None:
    told = dict(re.findall(r"^\| `(capo_actor_\w+)` \| ([^|]+?) \|", MANUAL.read_text(encoding="utf-8"), re.M))
    assert told == {series.name: series.meaning for series in SERIES}
