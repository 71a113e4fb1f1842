"""The Grafana dashboard asks for metrics that there are, and one command starts what shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from capo_ray.cluster.gauges import SERIES, gauge_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "launch" / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "capo_ray.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def told() -> set[str]:
    """Metrics of the manual."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = re.findall(r"`(\w+/\w+|staleness)`", text)
    return {gauge_name(name) for name in (*names, "step", *(f"evaluation/{name}" for name in names))}


@pytest.mark.parametrize("query", QUERIES)
def test_what_it_asks_for_is_published(query: str) -> None:
    names = re.findall(r"ray_(capo_\w+)", query)
    assert names and set(names) <= {series.name for series in SERIES} | told()
    assert query.count('run=~"$run"') == len(names), "every query is of the chosen runs"
    for name in names:
        assert ("rate(ray_" + name in query) == name.endswith("_total"), (
            "counters are shown as rates, gauges as they are"
        )
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_it_is_a_dashboard() -> None:
    assert BOARD["schemaVersion"] >= 36 and BOARD["uid"] == BOARD["title"] == "capo_ray"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        assert panel["type"] in ("stat", "timeseries")
        assert panel["datasource"]["uid"] == "${datasource}"
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "run"]


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(
    "wanted",
    ["tokens per second", "Idle share", "Reward", "Valid critiques", "canaries", "down", "Retries", "Staleness"],
)
def test_it_shows(wanted: str) -> None:
    assert any(wanted.lower() in panel["title"].lower() for panel in PANELS)


def test_provisioning_names_what_the_command_sets() -> None:
    script = (FOLDER / "up.sh").read_text(encoding="utf-8")
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/capo_ray.yaml").read_text())["providers"]
    for value in (source["url"], provider["options"]["path"]):
        assert f"export {value.removeprefix('$')}=" in script


# ---- the command -----------------------------------------------------------------------------------------------------


def stub(folder: Path, name: str, last: str) -> None:
    """A program that says in NAME.said how it was called, and then does `last`."""
    program = folder / name
    program.write_text(
        f'#!/bin/bash\n(echo "$@"; env | grep -E "^(GF_|CAPO_)" | sort) > {folder}/{name}.said\n{last}\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run that goes on, and both programs."""
    config = tmp_path / "ray" / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
    config.parent.mkdir(parents=True)
    config.touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ray_session").write_text(f"{tmp_path}/ray\n")
    (tmp_path / "bin").mkdir()
    stub(tmp_path / "bin", "prometheus", "exec sleep 60")
    stub(tmp_path / "bin", "grafana", "exec sleep 60")
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PATH": f"{place}/bin:/usr/bin:/bin", "HOME": str(place), "PROMETHEUS_PORT": "9191"}
    return subprocess.Popen(
        [str(FOLDER / "up.sh"), *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_one_command_starts_both_and_ends_both(place: Path) -> None:
    process = start(place, f"{place}/run")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("The run: http://127.0.0.1:3000   Prometheus: http://127.0.0.1:9191 ")
    said = {}
    while len(said) < 2:
        said = {path.stem: path.read_text() for path in place.glob("bin/*.said") if "GF_SERVER" in path.read_text()}
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert f"--config.file={place}/ray/session_latest/metrics/prometheus/prometheus.yml" in said["prometheus"]
    assert "--web.listen-address=127.0.0.1:9191" in said["prometheus"]
    for line in (
        f"GF_PATHS_PROVISIONING={FOLDER}/provisioning",
        f"CAPO_RAY_DASHBOARDS={FOLDER}",
        "CAPO_RAY_PROMETHEUS=http://127.0.0.1:9191",
        "GF_SERVER_HTTP_ADDR=127.0.0.1",
    ):
        assert line in said["grafana"].splitlines()


def test_a_ray_without_a_dashboard_is_read_on_this_machine(place: Path) -> None:
    session = place / "ray" / "session_latest"
    (session / "metrics" / "prometheus" / "prometheus.yml").unlink()
    (session / "metrics_export_port_ab12").write_text("4321")
    process = start(place, f"{place}/run")
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    (jobs,) = yaml.safe_load((place / ".local/state/capo_ray/prometheus.yml").read_text())["scrape_configs"]
    assert jobs["static_configs"] == [{"targets": ["127.0.0.1:4321"]}]


def test_one_that_ends_ends_the_other(place: Path) -> None:
    stub(place / "bin", "grafana", "exit 1")
    process = start(place, f"{place}/run")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors == f"error: one of them has ended; see above and {place}/.local/state/capo_ray/grafana.log\n"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("run/ray_session", "run/ray_session is not there: the run has ended, or joined a cluster"),
        ("ray/session_latest/metrics/prometheus/prometheus.yml", "no Ray runs in "),
        ("bin/grafana", "grafana is not installed"),
    ],
)
def test_what_is_missing_is_said(place: Path, broken: str, message: str) -> None:
    (place / broken).unlink()
    process = start(place, f"{place}/run")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and message in errors


def test_help(place: Path) -> None:
    process = start(place, "--help")
    said, _ = process.communicate(timeout=20)
    assert "launch/grafana/up.sh [RUN_DIR]" in said
