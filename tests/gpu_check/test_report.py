"""Each figure of the check stands in table, JSON and the section for the page; those of a CPU are nobody's GPU."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from capo_ray.gpu_check.report import as_json, good, measured_gpu, paragraph, table
from capo_ray.gpu_check.watching import Outcome, State

DAY = date(2026, 11, 25)
HERE = {
    "python": "3.12.3",
    "cores": 16,
    "memory_gib": 128.0,
    "versions": {"torch": "2.11.0", "vllm": "0.24.0"},
    "pinned": {"torch": "2.13.0", "vllm": "0.32.0"},
    "gpus": [{"name": "NVIDIA H100 80GB HBM3", "gib": 79.6, "driver": "575.1"}],
    "cuda": "13.0",
    "matmul_tflops": 612.5,
    "driver_old": "575; CUDA 13 wants 580 or above",
    "cannot": {"weight sync": "cannot import name 'ParamMeta'"},
}
STEP = {
    "tokens": 2048,
    "planned_gib": 18.0,
    "error": "",
    "seconds": 0.1,
    "tokens_per_second": 20480.0,
    "mfu": 0.312,
    "peak_tensors_gib": 17.0,
    "peak_gib": 20.0,
}
OUT = {"tokens": 8192, "planned_gib": 30.0, "error": "OutOfMemoryError: CUDA out of memory", "peak_gib": 79.0}
ENGINE = {
    "model": "1B",
    "responses": 256,
    "start_seconds": 41.2,
    "sampled_tokens": 65536,
    "sampled_tokens_per_second": 21345.6,
    "prompt_tokens": 131072,
    "prompt_tokens_per_second": 151234.0,
}
SYNC = {
    "transport": "ipc",
    "parameters": 494_000_000,
    "dtype": "bfloat16",
    "gap_before": 0.71,
    "connect_seconds": 0.4,
    "sync_1_seconds": 0.523,
    "gap_1": 0.0031,
    "sync_2_seconds": 0.214,
    "gap_2": 0.0032,
    "checksums": ["a", "b"],
}
WORLD = {"server_seconds": 30.0, "seconds": 95.0, "steps": [1, 2], "gap": 4e-7, "valid_critiques": 0.97}
WORLD |= {"seconds_per_step": 3.2}
TURNS = {"model": "1B", "awake_gib": 48.3, "kept_freed_gib": 46.04, "kept_sleep_seconds": 1.2}
TURNS |= {"kept_wake_weights_seconds": 0.5, "kept_wake_cache_seconds": 0.25, "dropped_freed_gib": 46.1}
RESUMED = {"killed_after": "step_000001", "resumed_seconds": 62.0, "steps": [1, 2, 3], "gap": 5e-7}
RESUMED |= {"valid_critiques": None, "seconds_per_step": 2.5}


def outcome(name: str, state: State = "ok", said: str = "", **figures: Any) -> Outcome:
    return Outcome(
        name=name, what=f"what {name} is", state=state, seconds=12.0, limit_s=60.0, said=said, figures=figures,
        log=f"/out/{name}/log",
    )  # fmt: skip


ALL = (
    outcome("here", **HERE),
    outcome("train_1B", "failed", "8,192 tokens: out", model="1B", steps=[STEP, OUT]),
    outcome("ipc", **SYNC),
    outcome("engine", **ENGINE),
    outcome("world", **WORLD),
    outcome("turns", **TURNS),
    outcome("nccl", "skipped", "nccl wants two cards, and here is one"),
    outcome("resume", "timeout", "ended after 60 s; it was at: run", **RESUMED),
)
WORDS = {
    "here": [
        "NVIDIA H100 80GB HBM3 (80 GiB, driver 575.1)",
        "16 cores, 128.0 GiB",
        "Python 3.12.3",
        "torch 2.11.0",
        "vllm 0.24.0",
        "CUDA 13.0",
        "a product of matrices in bf16: 612.5 TFLOP/s",
        "driver 575; CUDA 13 wants 580 or above",
        "other versions than the lock's: torch 2.11.0, pinned 2.13.0; vllm 0.24.0, pinned 0.32.0",
        "weight sync cannot be done here: cannot import name 'ParamMeta'",
    ],
    "train_1B": [
        "1B, 2,048 tokens: 20,480 tokens/s, MFU 31 %, peak 20.0 GiB, planned 18.0 (-10 %)",
        "1B, 8,192 tokens: OutOfMemoryError: CUDA out of memory; peak 79.0 GiB, planned 30.0",
    ],
    "ipc": [
        "ipc, 494.0 M parameters: syncs of 0.52 s, 0.21 s",
        "mean distance of log-probabilities before 0.71, after one 0.0031, after two 0.0032",
    ],
    "engine": ["1B: start 41 s, sampling 21,346 tokens/s, 256 responses at a time, prompts 151,234 tokens/s"],
    "world": [
        "95 s, start and end included; steps 1, 2; 3.2 s for the last; log-probabilities apart by 4e-07 at most; "
        "97 % of the critiques can be read"
    ],
    "turns": ["weights kept: 46.0 of 48.3 GiB given back in 1.20 s, taken again in 0.75 s"],
    "nccl": ["nccl wants two cards, and here is one"],
    "resume": [
        "ended after 60 s; it was at: run",
        "killed after checkpoint step_000001; resumed to the end in 62 s; steps 1, 2, 3; 2.5 s for the last; "
        "log-probabilities apart by 5e-07 at most",
    ],
}


@pytest.mark.parametrize("name", WORDS)
def test_every_figure_in_words(name: str) -> None:
    shown, page = table(ALL, "gpu"), paragraph(ALL, "gpu", DAY)
    for words in WORDS[name]:
        assert words in shown
        assert words in page


def test_the_table_has_a_row_for_each_part_and_names_the_logs_of_what_failed() -> None:
    lines = table(ALL, "gpu").splitlines()
    assert [line.split()[:2] for line in lines if line[:1].isalpha()][1:] == [
        ["part", "state"], *([part.name, part.state] for part in ALL)
    ]  # fmt: skip
    assert "         12     60  8,192 tokens: out" in "\n".join(lines)
    logs = [line.split()[-1] for line in lines if " log: " in line]
    assert logs == ["/out/train_1B/log", "/out/resume/log"]


def test_the_json_holds_everything() -> None:
    report = json.loads(json.dumps(as_json(ALL, "gpu", DAY)))
    assert (report["date"], report["device"], report["measured_gpu"]) == ("2026-11-25", "gpu", True)
    assert report["machine"] == HERE
    assert [part["name"] for part in report["parts"]] == [part.name for part in ALL]
    assert report["parts"][2] == {
        "name": "ipc", "what": "what ipc is", "state": "ok", "seconds": 12.0, "limit_s": 60.0, "said": "",
        "figures": SYNC, "log": "/out/ipc/log",
    }  # fmt: skip


def test_the_section_has_a_row_for_each_part() -> None:
    page = paragraph((*ALL, outcome("world", "failed", "a | b")), "gpu", DAY)
    assert page.startswith("## One card\n\n2026-11-25, `python -m capo_ray.gpu_check`: NVIDIA H100")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(ALL) + 1
    assert all(row.count("|") == 4 for row in rows)


def test_a_cpu_run_says_plainly_that_it_measured_no_gpu() -> None:
    well = (outcome("here", **HERE | {"gpus": []}), outcome("engine", **ENGINE))
    assert table(well, "cpu").startswith("NO GPU WAS MEASURED: device=cpu ran the same code")
    assert paragraph(well, "cpu", DAY).startswith("## A trial of the GPU check that measured no GPU\n\nNO GPU WAS")
    assert as_json(well, "cpu", DAY)["measured_gpu"] is False
    assert not measured_gpu(well, "cpu")


def test_a_gpu_on_which_nothing_ran_was_not_measured() -> None:
    bad = (outcome("here", **HERE), outcome("engine", "failed", "no"), outcome("ipc", "skipped", "no"))
    assert table(bad, "gpu").startswith("NO GPU WAS MEASURED: no part that measures one ended well.")
    assert "no GPU" in paragraph(bad, "gpu", DAY).splitlines()[0]


def test_what_was_not_asked_or_found_is_not_made_up() -> None:
    assert "what is here was not asked (parts=here)" in table((outcome("engine", **ENGINE),), "gpu")
    assert "MFU unknown" in table((outcome("train_1B", model="1B", steps=[STEP | {"mfu": None}]),), "gpu")
    assert "no GPU; 16 cores" in table((outcome("here", **HERE | {"gpus": []}),), "cpu")
    for name in ("here", "train_1B", "ipc", "engine", "world", "resume"):  # ended before the first figure
        assert f"{name:<12}killed" in table((outcome(name, "killed", "by SIGKILL"),), "gpu")


def test_what_cannot_be_done_here_is_no_fault() -> None:
    assert good((outcome("here"), outcome("nccl", "skipped", "one card")))
    states: tuple[State, ...] = ("failed", "timeout", "killed", "not reached")
    assert not any(good((outcome("here"), outcome("engine", state, "no"))) for state in states)
