"""How long is a training step, where does its time go, and how does that compare with TRL?

    python benchmarks/step.py [trl=FOLDER] [ours=KEY=VALUE,...] [steps=6] [rounds=1] [critic=false] [out=FILE.json]

The tiny world whole (Ray, vLLM, DeepSpeed ranks, everything that a run writes down) trains on right answers alone, as
GRPO does, and so does TRL's GRPOTrainer, on the same model, prompts, group size, lengths, sampling, passes and updates,
with all cores of the machine for each; then capo_ray again, as CAPO with the tiny critic and four critiques. FOLDER is
where `pip install --no-deps --target FOLDER trl==1.16.0` put TRL; the locks have what it needs. Each side spreads over
two cores in the fastest of the ways that were tried (docs/performance.md): ours is two engines and two trainer ranks of
one thread each, TRL one process of two threads, which samples by transformers' `generate`. `ours` takes settings of a
run, those of `critic.` for CAPO alone: on more cores say how to spread over them.

Steps are timed from the end of the one before, start-up and `warm_up` steps left out; figures are medians. Time on the
core is that of all processes of a side. Of ours sampling is the time in which the busiest engine has a request, and
reward what is waited for beyond that. TRL samples from the weights that it trains, so it has no sync; its update is all
that is neither sampling nor reward.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from re import fullmatch
from statistics import median
from time import monotonic, sleep
from typing import Any

import psutil

from capo_ray.config.block import Block, setting
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.config.run import Config
from capo_ray.data.prompts import load_prompts
from capo_ray.models.find import find_model
from capo_ray.program import run_program

HERE = Path(__file__).resolve().parent
PARTS = ("sampling", "reward", "update", "sync", "other")
OURS, CAPO, TRL = "capo_ray, GRPO", "capo_ray, CAPO", "TRL, GRPO"
PATIENCE_S = 900.0
"""For one side of a round."""
Figures = dict[str, float]


class Settings(Block):
    """Of this program."""

    trl: AnyPath | None = setting("folder that TRL was installed into; null: TRL is left out", None)
    ours: tuple[str, ...] = setting("settings of capo_ray's runs, beside tiny_cpu's", ("rollout.workers=2",))
    trl_threads: int = setting("OpenMP threads of TRL's process", os.cpu_count() or 1, gt=0)
    critic: bool = setting("whether CAPO is measured too", True)
    steps: int = setting("training steps that are timed", 6, gt=0)
    warm_up: int = setting("steps before them", 2, gt=0)
    rounds: int = setting("times that each side is measured", 1, gt=0)
    prompts: int = setting("of a step", 16, gt=0)
    group: int = setting("responses to each", 16, gt=1)
    per_update: int = setting("responses of an optimizer step", 128, gt=0)
    passes: int = setting("over the responses of a step", 2, gt=0)
    response: int = setting("most tokens of a response", 64, gt=0)
    out: Path | None = setting("JSON with every figure", None)

    @property
    def all_steps(self) -> int:
        return self.warm_up + self.steps


def overrides(given: Settings, *, critic: bool) -> list[str]:
    """Of the run."""
    return [
        *("+experiment=tiny_cpu", "tracking.wandb=off", "data.evaluation_prompts=0", "checkpoint_every=0"),
        *(() if critic else ("critic=null", "algorithm=grpo")),
        *(f"steps={given.all_steps}", f"prompts_per_step={given.prompts}", f"responses_per_prompt={given.group}"),
        f"trainer.responses_per_update={given.per_update}",
        f"trainer.optimisation_passes={given.passes}",
        f"rollout.max_response_tokens={given.response}",
        *(one for one in given.ours if critic or not one.startswith("critic.")),
    ]


def timed(command: Sequence[Any], lines: Path, given: Settings, folder: Path, **variables: str) -> list[Figures]:
    """Run `command` to its end; what it writes of each step to `lines`, with the seconds since the step before, by the
    clock and on the core. Raises RuntimeError where it fails."""
    log, seen = folder / "output", [0.0]
    environment = {**os.environ, **variables}
    with log.open("w", encoding="utf-8") as output:
        process = psutil.Popen(list(map(str, command)), cwd=folder, stdout=output, stderr=output, env=environment)
    start = monotonic()
    try:
        while process.poll() is None:
            if monotonic() - start > PATIENCE_S:
                raise RuntimeError(f"no end after {PATIENCE_S:g} s: {' '.join(map(str, command))}")
            steps = lines.read_bytes().count(b"\n") if lines.is_file() else 0
            if steps >= len(seen):
                seen += [on_core(process)] * (steps + 1 - len(seen))
            sleep(0.05)
    finally:
        end(process)
    written = list(map(json.loads, lines.read_text(encoding="utf-8").splitlines())) if lines.is_file() else []
    if process.returncode or len(written) < given.all_steps:
        raise RuntimeError(f"{command[1]} ended with {process.returncode}: {log.read_text(encoding='utf-8')[-2000:]}")
    seen += [seen[-1]] * (len(written) + 1 - len(seen))
    return [
        {**line, "seconds": line["time"] - before["time"], "core": seen[step + 1] - seen[step]}
        for step, (before, line) in enumerate(pairwise(written), 1)
    ][given.warm_up - 1 :]


def on_core(process: psutil.Process) -> float:
    """Seconds of it and all below it that are alive."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def end(process: psutil.Process) -> None:
    """With what is below it; nothing where it has ended."""
    if process.is_running() and process.poll() is None:
        for one in (*process.children(recursive=True), process):
            one.kill()
        process.wait()


def ours(given: Settings, folder: Path, *, critic: bool) -> list[Figures]:
    run = folder / "run"
    command = [sys.executable, "-m", "capo_ray.launch", *overrides(given, critic=critic), f"run_dir={run}"]
    return [parts_of(line) for line in timed(command, run / "metrics.jsonl", given, folder)]


def parts_of(line: Mapping[str, float]) -> Figures:
    """Of a line of metrics.jsonl."""
    wait = line["seconds/wait"]
    busiest = max(share for name, share in line.items() if fullmatch(r"actor/rollout-\d+/busy_share", name))
    sampling = min(wait, busiest * line["seconds/step"])
    made = {"sampling": sampling, "reward": wait - sampling}
    made |= {name: line[f"seconds/{name}"] for name in ("update", "sync")}
    made["other"] = line["seconds"] - sum(made.values())
    return made | {name: line[name] for name in ("seconds", "core")} | {"tokens": line["tokens/sampled"]}


def trl(given: Settings, folder: Path) -> list[Figures]:
    config = compose(overrides(given, critic=False))
    policy = find_model(config.policy, "policy", folder, seed=config.seed)
    prompts = load_prompts(config, policy.encoder(config.policy.system_prompt, config.policy.chat_template))
    asked = [
        {"ids": prompt.token_ids, "question": prompt.question}
        for step in range(1, given.all_steps + 1)
        for prompt in prompts.for_step(step)
    ]
    lines, told = folder / "lines.jsonl", folder / "settings.json"
    content = {"model": str(policy.folder), "prompts": asked, "lines": str(lines), "config": trl_config(given, config)}
    told.write_text(json.dumps(content), encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(given.trl), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, HERE / "step_trl.py", told]
    found = timed(command, lines, given, folder, PYTHONPATH=path, OMP_NUM_THREADS=str(given.trl_threads))
    for step in found:
        step |= {"update": step["seconds"] - step["sampling"] - step["reward"], "sync": 0.0, "other": 0.0}
    return found


def trl_config(given: Settings, config: Config) -> dict[str, Any]:
    """GRPOConfig, set to what the run does."""
    responses, trainer = given.prompts * given.group, config.trainer
    updates = -(-responses // given.per_update)
    return {
        "output_dir": "out",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": responses // updates,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": updates,
        "num_generations": given.group,
        "num_iterations": given.passes,
        "max_steps": updates * given.passes * given.all_steps,
        "max_completion_length": given.response,
        "temperature": config.rollout.temperature,
        "top_k": 0,
        "beta": 0.0,
        "loss_type": "grpo",
        "learning_rate": trainer.learning_rate,
        "lr_scheduler_type": trainer.schedule,
        "warmup_steps": trainer.warmup_steps,
        "max_grad_norm": trainer.max_grad_norm,
        "shuffle_dataset": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def measured(given: Settings) -> dict[str, list[list[Figures]]]:
    """Of each side, by round, by step."""
    sides: dict[str, Any] = {OURS: lambda folder: ours(given, folder, critic=False)}
    if given.trl is not None:
        sides[TRL] = lambda folder: trl(given, folder)
    if given.critic:
        sides[CAPO] = lambda folder: ours(given, folder, critic=True)
    found: dict[str, list[list[Figures]]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side, measure in sides.items():
            with tempfile.TemporaryDirectory(prefix="step-") as folder:
                found[side].append(measure(Path(folder)))
    return found


def row_of(given: Settings, rounds: list[list[Figures]], base: list[list[Figures]]) -> Figures:
    """Medians over all steps, and how many times as fast as `base`, within each round."""
    steps = [step for one in rounds for step in one]
    middle = {name: median(step[name] for step in steps) for name in (*PARTS, "seconds", "core")}
    pairs = list(zip(base, rounds, strict=True))
    times = {
        f"times_{name}": median(median(s[name] for s in other) / median(s[name] for s in one) for other, one in pairs)
        for name in ("seconds", "core")
    }
    return middle | times | {"responses_per_s": given.prompts * given.group / middle["seconds"]}


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    if given.trl is None:
        print("TRL is left out; with it: pip install --no-deps --target FOLDER trl==1.16.0, then trl=FOLDER")
    elif not (given.trl / "trl").is_dir():
        raise ConfigError(f"trl: {given.trl} has no TRL; pip install --no-deps --target {given.trl} trl==1.16.0")
    found = measured(given)
    base = TRL if TRL in found else OURS
    rows = {side: row_of(given, rounds, found[base]) for side, rounds in found.items()}
    load = os.getloadavg()[2]
    how = ", ".join(("tiny_cpu", *given.ours))
    print(
        f"{given.prompts * given.group} responses a step; capo_ray: {how}; TRL: generate, {given.trl_threads} threads"
    )
    print(f"{os.cpu_count()} cores, load {load:.1f} over 15 minutes; seconds of a step, and times as fast as {base}")
    heads = ("resp./s", "times", "step", *PARTS, "on core", "times")
    print(" " * 16 + "".join(f"{head:>10}" for head in heads))
    for side, row in rows.items():
        shown = ("responses_per_s", "times_seconds", "seconds", *PARTS, "core", "times_core")
        print(f"{side:16}" + "".join(f"{row[name]:10.2f}" for name in shown))
    if given.out is not None:
        whole = {"settings": given.model_dump(mode="json"), "load": load, "rows": rows, "steps": found}
        given.out.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(
        run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True, failures=(RuntimeError,))
    )
