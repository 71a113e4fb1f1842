"""The whole tiny world on one card: rollouts, critiques, votes, updates and syncs by `capo_ray.launch`; and once more,
killed on the way and resumed, and with an adapter and roles that have the card in turns.

Otherwise one card has no room for an engine that is a critic beside trainer and rollout worker in Ray's books: the
critic is vLLM's own server beside them, as with one GPU in earnest. Leaves out what a run is worth (docs/results.md).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capo_ray.config.critic import Voter
from capo_ray.engines.critic_http import HttpCriticError, served_models
from capo_ray.engines.ports import free_port
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.gpu_check.here import want_weight_sync
from capo_ray.gpu_check.notes import Notes
from capo_ray.gpu_check.watching import end_marked
from capo_ray.models.find import ASSETS

MARK = "CAPO_RAY_GPU_CHECK_RUN"
STEPS, RESUMED_STEPS = 2, 3
NEAR = 5e-3
"""How far the sampler's and the trainer's log-probabilities may be apart on average; the tiny models are float32."""
_COMMON = (
    "+experiment=tiny_cpu",
    "prompts_per_step=4",
    "responses_per_prompt=4",
    "trainer.ranks=1",
    "trainer.responses_per_update=8",
    "data.evaluation_prompts=64",
    "tracking.wandb=off",
    "tracking.tensorboard=false",
    "checkpoint_every=1",
    "cluster.max_restarts=0",
)
_ON_ONE_CARD = ("cluster=gpu", "+size=one_gpu", "cluster.dashboard=false")
_IN_TURNS = (
    "cluster.sharing=turns",
    "trainer.lora.rank=8",
    "trainer.learning_rate=2.5e-3",
    "trainer.offload=optimizer",
)
"""What fits a small card in earnest: the adapter alone goes to the engine, moments are in the host's memory."""
_CARD_IN_TURNS = ("cluster=gpu", "cluster.dashboard=false")
_SERVED = (
    "critic=http",
    "critic.served_model=tiny",
    "critic.template=brief",
    "critic.max_critique_tokens=96",
    "critic.top_p=1.0",
)
_SERVER_SHARE = 0.15
_KILL_AFTER = 1
"""Checkpoints."""


def work(notes: Notes) -> None:
    want_weight_sync()
    with critic_server(notes) as endpoint:
        _judged(notes, *_SERVED, f"critic.endpoints=[{endpoint}]")


def turns(notes: Notes) -> None:
    """With an engine for the critic that sleeps while others are at work, as they do."""
    want_weight_sync()
    _judged(notes, *_IN_TURNS, place=_CARD_IN_TURNS if notes.on_gpu else ())


def _judged(notes: Notes, *overrides: str, place: Sequence[str] | None = None) -> None:
    """A run to its end, of which every step is there and critiques can be read."""
    run_dir, begun = notes.folder / "run", time.perf_counter()
    Run(notes, run_dir, *overrides, f"steps={STEPS}", place=place).end()
    notes.put(seconds=round(time.perf_counter() - begun, 1))
    steps = steps_of(run_dir)
    notes.put(**told(steps))
    check(steps, STEPS)
    if not steps[-1].get("critic/valid_share"):
        raise RuntimeError("no critique could be read")


def resume(notes: Notes) -> None:
    """With the truth for a critic, which needs no server."""
    want_weight_sync()
    run_dir, asked = notes.folder / "run", ("critic=truth", "critic.canaries=null", f"steps={RESUMED_STEPS}")
    run = Run(notes, run_dir, *asked)
    checkpoints = Checkpoints(run_dir, keep=2)
    run.wait(lambda: (newest := checkpoints.newest()) is not None and newest.name >= f"step_{_KILL_AFTER:06d}")
    run.kill()
    killed = checkpoints.newest()
    assert killed is not None
    if killed.name >= f"step_{RESUMED_STEPS:06d}":
        raise RuntimeError("the run had ended before it was killed")
    notes.put(killed_after=killed.name)
    begun = time.perf_counter()
    Run(notes, run_dir, *asked, "resume=true").end()
    notes.put(resumed_seconds=round(time.perf_counter() - begun, 1))
    steps = steps_of(run_dir)
    notes.put(**told(steps))
    check(steps, RESUMED_STEPS)


class Run:
    """`capo_ray.launch` on its way."""

    def __init__(self, notes: Notes, run_dir: Path, *overrides: str, place: Sequence[str] | None = None) -> None:
        """`place`: settings of the card; None: those of one that trainer and rollout worker have in pairs."""
        self._notes, self._mark = notes, uuid.uuid4().hex
        self._log = notes.folder / f"{self._mark[:8]}.out"
        if place is None:
            place = _ON_ONE_CARD if notes.on_gpu else ()
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "capo_ray.launch", *_COMMON, *place, *overrides, f"run_dir={run_dir}"],
                env=dict(os.environ) | {MARK: self._mark},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        notes.say("start of the run")

    def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
        """Until that, or the run's end, whose exit code is returned."""
        while self._process.poll() is None:
            if until():
                return None
            self._notes.say(f"run: {self._last_line()}")
            time.sleep(0.5)
        if until():
            return self._process.returncode
        if self._process.returncode:
            print(self._log.read_text(encoding="utf-8", errors="replace"), flush=True)
            raise RuntimeError(f"exit code {self._process.returncode}: {self._error()}")
        return 0

    def end(self) -> None:
        self.wait()

    def kill(self) -> None:
        """All of it at once, as a machine that goes down would."""
        self._process.kill()
        end_marked(MARK, self._mark, first=signal.SIGKILL)
        self._process.wait()

    def _lines(self) -> list[str]:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _last_line(self) -> str:
        return (self._lines() or ["starting"])[-1][:120]

    def _error(self) -> str:
        return next((line for line in self._lines() if line.startswith("error:")), self._last_line())


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "staleness" in line]


def told(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last = steps[-1] if steps else {}
    return {
        "steps": [line["step"] for line in steps],
        "gap": max((line.get("trainer/sampler_gap_mean", 0.0) for line in steps), default=None),
        "valid_critiques": last.get("critic/valid_share"),
        "seconds_per_step": round(last["seconds/step"], 2) if "seconds/step" in last else None,
        "wake_seconds": round(last["turns/wake_s"], 2) if "turns/wake_s" in last else None,
    }


def check(steps: Sequence[dict[str, Any]], wanted: int) -> None:
    """Every step once, and the engine's log-probabilities near the trainer's in each."""
    if [line["step"] for line in steps] != list(range(1, wanted + 1)):
        raise RuntimeError(f"steps {[line['step'] for line in steps]} were written, 1 to {wanted} were asked for")
    far = [line["step"] for line in steps if not line.get("trainer/sampler_gap_mean", NEAR) < NEAR]
    if far:
        raise RuntimeError(f"in steps {far} the log-probabilities of engine and trainer differ by {NEAR:g} or more")


@contextmanager
def critic_server(notes: Notes) -> Iterator[str]:
    """The tiny critic behind vLLM's own server; the address."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={ASSETS / 'tiny_critic'}"]
    place = [f"--gpu-memory-utilization={_SERVER_SHARE}"] if notes.on_gpu else ["--no-enable-chunked-prefill"]
    options = [
        f"--port={port}",
        "--host=127.0.0.1",
        "--dtype=float32",
        "--enforce-eager",
        "--served-model-name=tiny",
        "--max-num-seqs=64",
        *place,
    ]
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*command, *options],
        env=dict(os.environ) | {MARK: mark},
    )
    notes.say("start of the critic's server")
    begun = time.perf_counter()
    try:
        while not _answers(port):
            if process.poll() is not None:
                raise RuntimeError(f"the critic's server ended with exit code {process.returncode}")
            time.sleep(0.5)
        notes.put(server_seconds=round(time.perf_counter() - begun, 1))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        end_marked(MARK, mark)
        process.wait()


def _answers(port: int) -> bool:
    """The runner's limit ends this waiting."""
    endpoint = f"http://127.0.0.1:{port}/v1"
    block = Voter(kind="http", endpoints=(endpoint,), served_model="tiny", api_key_env=None)
    try:
        return served_models(block, endpoint) is not None
    except HttpCriticError:
        return False
