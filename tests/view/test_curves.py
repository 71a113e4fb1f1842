"""Curves: only new lines are read, and what is shown is what the run wrote."""

import json
from pathlib import Path

from capo_ray.view.curves import Metrics, charts, thinned


def test_lines_are_read_as_they_come(tmp_path: Path) -> None:
    metrics, file = Metrics(tmp_path), tmp_path / "metrics.jsonl"
    assert not metrics.refresh() and metrics.last == {}
    file.write_text('{"step": 0, "time": 1, "staleness": 0.0}\n{"step": 1, "ti')
    assert metrics.refresh() and metrics.curve("staleness") == [(0, 0.0)]
    assert not metrics.refresh()
    with file.open("a") as more:
        more.write('me": 2, "staleness": null, "seconds/step": 2.0}\n')
    assert metrics.refresh() and metrics.last["step"] == 1
    assert metrics.curve("staleness") == [(0, 0.0)] and metrics.curve("seconds/step") == [(1, 2.0)]
    assert metrics.names() == ["seconds/step", "staleness"]


def test_a_file_that_was_cut_back_is_read_again(tmp_path: Path) -> None:
    metrics, file = Metrics(tmp_path), tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "staleness": 1.0}) + "\n" for step in range(3)))
    metrics.refresh()
    partial = tmp_path / "metrics.partial"
    partial.write_text('{"step": 0, "staleness": 5.0}\n' * 9)  # longer than before, and another file
    partial.replace(file)
    assert metrics.refresh() and len(metrics.curve("staleness")) == 9


def test_charts_have_what_the_run_has(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "evaluation/outcome/accuracy": 0.25},
        {"step": 0, "outcome/accuracy": 0.5, "staleness": 0.0, "speed/critic_tokens_per_s": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = Metrics(tmp_path)
    metrics.refresh()
    made = charts(metrics)
    assert set(made) == {"Right", "Staleness, in versions", "Tokens per second, by role"}
    line, diamond = made["Right"]["series"]
    assert (line["name"], line["type"], line["data"]) == ("answer", "line", [[0, 0.5]])
    assert (diamond["name"], diamond["type"], diamond["data"]) == ("answer", "scatter", [[0, 0.25]])


def test_what_an_update_is_watched_by_comes_early(tmp_path: Path) -> None:
    watched = ["loss", "entropy", "kl_old", "grad_norm", "clip_fraction", "learning_rate"]
    line = {"step": 3, "critic/valid_share": 1.0, **{f"trainer/{name}": 2.0312345678e-8 for name in watched}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    metrics = Metrics(tmp_path)
    metrics.refresh()
    made = charts(metrics)
    assert list(made) == [
        *("Loss", "Entropy", "KL per token", "Gradient norm", "Clipped tokens", "Learning rate", "Critiques")
    ]
    assert made["Learning rate"]["series"][0]["data"] == [[3, 2.0312e-8]]


def test_every_actor_has_its_curve(tmp_path: Path) -> None:
    line = {"step": 3, "actor/rollout-0/tokens_per_s": 80.0, "actor/org/judge at host/tokens_per_s": 90.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line | {"actor/rollout-0/busy_share": 0.5}) + "\n")
    metrics = Metrics(tmp_path)
    metrics.refresh()
    made = charts(metrics)
    assert set(made) == {"Tokens per second, by actor", "Busy share, by actor"}
    shown = {series["name"]: series["data"] for series in made["Tokens per second, by actor"]["series"]}
    assert shown == {"org/judge at host": [[3, 90.0]], "rollout-0": [[3, 80.0]]}


def test_a_long_curve_is_thinned() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    made = thinned(points, most=100)
    assert len(made) == 100 and made[0] == (9.0, 0.5) and made[-1][0] == 999
    assert thinned(points[:7], most=100) == points[:7] and thinned([]) == []
