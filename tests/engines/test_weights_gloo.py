"""Weights from two ZeRO-3 ranks to two engines as they travel between GPUs, gloo in NCCL's place; and a worker that
dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent
SETTINGS = (
    "critic=null", "algorithm=grpo", "algorithm.kl_weight=0.01", "rollout.workers=2", "trainer.ranks=2",
    "trainer.zero_stage=3", "steps=3", "prompts_per_step=4", "responses_per_prompt=4", "trainer.responses_per_update=8",
    "checkpoint_every=1", "data.evaluation_prompts=0", "tracking.wandb=off",
)  # fmt: skip


@contextmanager
def running(run_dir: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "gloo_run.py"), str(run_dir), *SETTINGS],
        env={**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE / 'gloo_site'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_that_dies_while_weights_move_is_named_and_the_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The third sync of the second worker; rank 0 would wait for it for ever."""
    death = tmp_path / "death"
    death.write_text("2 3")
    told, output = 0.0, []
    with running(tmp_path / "run", GLOO_DEATH=str(death)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if "an actor was lost" in line:
                told = time.time()
                assert "weight sync: rollout-1 failed in update" in line
        process.wait(60)
    text = "".join(output)
    assert process.returncode == 0, text
    assert "Everything is started again from the newest checkpoint (restart 1" in text
    took = told - float(death.read_text())
    print(f"named {took:.1f} s after its death")
    assert took < 60
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "staleness" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:  # what engines sampled from is what the trainer holds
        assert line["trainer/sampler_gap_mean"] < 1e-3
        assert line["staleness"] == 0
