"""Spans and their file: rows without overlaps, what does not fit, a killed run, and a run that goes on."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from capo_ray.records import trace
from capo_ray.records.trace import IDLE, Span, Spans, TraceFile


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(trace, "monotonic", lambda: now[0])
    monkeypatch.setattr(trace, "time", lambda: 100.0 + now[0])
    return now


def test_what_goes_on_at_a_time_has_rows_of_its_own_and_the_gaps_are_idle(clock: list[float]) -> None:
    spans = Spans(on=True)
    clock[0] = 1
    with spans.of("a") as what:
        clock[0] = 2
        with spans.of("b", step=3):
            clock[0] = 3
        what["tokens"] = 5
        with spans.of("c"):
            clock[0] = 4
    clock[0] = 6
    with spans.of("d"):
        clock[0] = 7
    clock[0] = 8
    assert spans.take() == [
        Span("idle", IDLE, 100, 101, {}),
        Span("b", 2, 102, 103, {"step": 3}),
        Span("c", 2, 103, 104, {}),
        Span("a", 1, 101, 104, {"tokens": 5}),
        Span("idle", IDLE, 104, 106, {}),
        Span("d", 1, 106, 107, {}),
        Span("idle", IDLE, 107, 108, {}),
    ]
    assert spans.take() == []


def test_what_finds_no_row_is_counted(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST_ROWS", 2)
    spans = Spans(on=True)
    with ExitStack() as stack:
        for name in "abcd":
            stack.enter_context(spans.of(name))
        clock[0] = 1
    assert [(span.name, span.row) for span in spans.take()] == [("b", 2), ("a", 1), ("2 more, not shown", IDLE)]


def test_off_nothing_is_kept() -> None:
    spans = Spans(on=False)
    with spans.of("a", step=1) as what:
        what["tokens"] = 5
    assert spans.take() == []


def test_a_killed_runs_file_lacks_its_last_bracket_alone_and_is_never_written_over(tmp_path: Path) -> None:
    killed = TraceFile(tmp_path)
    killed.write({"driver": [Span("update", 1, 1.0, 2.5, {"step": 1})], "critic-0": [Span("idle", IDLE, 1, 2, {})]})
    before = (tmp_path / "trace.json").read_text()
    with pytest.raises(json.JSONDecodeError):
        json.loads(before)
    events = json.loads(before + "]")
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {"driver", "critic-0"}
    (update,) = [event for event in events if event["name"] == "update"]
    assert (update["ph"], update["ts"], update["dur"], update["args"]) == ("X", 1_000_000, 1_500_000, {"step": 1})

    resumed = TraceFile(tmp_path)
    resumed.write({"driver": [Span("sync", 1, 3, 4, {})]})
    resumed.close()
    assert (tmp_path / "trace.json").read_text() == before
    again = json.loads((tmp_path / "trace.2.json").read_text())
    assert [event["name"] for event in again] == ["capo_ray", "process_name", "thread_name", "sync"]
