"""Whatever a part does, it comes back as an outcome, in time, with what it had found, and nothing of it lives on."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from ending import living

from capo_ray.gpu_check import watching
from capo_ray.gpu_check.watching import Outcome, Part, run_part

PATIENT_S = 60.0


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def outcome(
    function: str, home: Path, limit_s: float = PATIENT_S, said: list[str] | None = None, **options: float
) -> Outcome:
    part = Part(
        name=function, what="a part", module="made_parts", function=function, limit_s=PATIENT_S, options=options
    )
    return run_part(part, home, "cpu", limit_s, (said if said is not None else []).append)


def test_a_part_that_ends_well_brings_its_figures_and_takes_its_scratch_away(tmp_path: Path) -> None:
    got = outcome("fine", tmp_path, rate=5.0)
    assert (got.state, got.said, got.limit_s) == ("ok", "", PATIENT_S)
    assert got.figures == {"rate": 5.0, "steps": [{"tokens": 1}, {"tokens": 2}]}
    assert 0 < got.seconds < PATIENT_S
    assert "-- measuring" in Path(got.log).read_text()
    assert not (tmp_path / "fine" / "scratch").exists()


@pytest.mark.parametrize(
    ("function", "state", "said"),
    [
        ("fails", "failed", "ValueError: CUDA out of memory; it was at: second half"),
        ("cannot", "skipped", "there is one card"),
        ("is_killed", "killed", "by SIGKILL; it was at: allocating"),
        ("ends", "failed", "exit code 7 without a word; it was at: starting; see its log"),
        (
            "is_nowhere",
            "failed",
            "AttributeError: module 'made_parts' has no attribute 'is_nowhere'; it was at: starting",
        ),
    ],
)
def test_how_a_part_that_does_not_end_well_is_told(tmp_path: Path, function: str, state: str, said: str) -> None:
    got = outcome(function, tmp_path)
    assert (got.state, got.said) == (state, said)
    assert got.figures == ({"rate": 2.0} if function == "fails" else {})
    if state == "failed" and function != "ends":
        assert "Traceback" in Path(got.log).read_text()


def test_a_part_that_hangs_is_ended_at_its_limit_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 1.0)
    monkeypatch.setattr(watching, "_TERM_S", 0.5)
    said: list[str] = []
    got = outcome("hangs", tmp_path, 8.0, said)
    assert (got.state, got.said) == ("timeout", "ended after 8 s; it was at: waiting for NCCL")
    assert got.figures["rate"] == 3.0
    assert living([got.figures["child"]]) == []
    assert said[-1].startswith("  hangs: ") and said[-1].endswith(" s of at most 8; waiting for NCCL")


def test_what_a_part_leaves_behind_is_ended(tmp_path: Path) -> None:
    got = outcome("leaves_one_behind", tmp_path)
    assert got.state == "ok"
    assert living([got.figures["child"]]) == []


def test_ctrl_c_ends_the_part_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 0.0)
    monkeypatch.setattr(watching, "_TERM_S", 0.5)
    started: list[int] = []
    others = {child.pid for child in psutil.Process().children(recursive=True)}  # of tests before

    def interrupt(line: str) -> None:
        if "waiting for NCCL" in line:
            started.extend({child.pid for child in psutil.Process().children(recursive=True)} - others)
            raise KeyboardInterrupt

    part = Part(name="hangs", what="a part", module="made_parts", function="hangs", limit_s=PATIENT_S)
    with pytest.raises(KeyboardInterrupt):
        run_part(part, tmp_path, "cpu", PATIENT_S, interrupt)
    assert started and living(started) == []


def test_the_environment_of_a_part_asks_no_network_and_no_card_on_cpu() -> None:
    cpu, gpu = watching.environment("cpu"), watching.environment("gpu")
    assert cpu["HF_HUB_OFFLINE"] == gpu["HF_HUB_OFFLINE"] == "1"
    assert cpu["CUDA_VISIBLE_DEVICES"] == "" and cpu["DS_ACCELERATOR"] == "cpu"
    assert gpu.get("DS_ACCELERATOR") != "cpu"
