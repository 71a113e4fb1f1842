"""`python -m capo_ray.replay PATH`: repeat an update whose gradient was not finite, and find the response it is of.

The trainer ranks start on this machine as the run's config.yaml says, from the newest checkpoint there was; the update
is made once as a whole, then every micro-batch alone on weights that stand still, and where one is not finite, every
response of it. Starts no Ray and no other engine, and changes nothing of the run. Leaves out what is kept
(cluster.nonfinite) and the update itself (engines).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal

from capo_ray.cluster import nonfinite
from capo_ray.config.block import Block, setting
from capo_ray.config.compose import validate
from capo_ray.config.fault import ConfigError
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.config.run import Config
from capo_ray.engines.ports import free_port
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.files.checkpoint import Checkpoints, fault_of
from capo_ray.files.run_dir import RunDirError, check_count
from capo_ray.leaving import leave
from capo_ray.program import run_program
from capo_ray.types import Metrics, TrainSequence

USAGE = """usage: python -m capo_ray.replay PATH [key=value ...]

Repeats an update whose gradient was not finite, and finds the response it is of. As many ranks as the run had start on
this machine.

  python -m capo_ray.replay runs/first/nonfinite/step_000012 device=cpu
"""


class Settings(Block):
    """Of this program."""

    path: AnyPath = setting(
        "RUN_DIR/nonfinite/step_N, or RUN_DIR for the one that was written last; PATH alone is it too"
    )
    device: Literal["cpu", "gpu"] | None = setting("where the ranks compute; null: as in the run", None)
    run_dir: AnyPath | None = setting(
        "the run, where `path` is a copy that stands elsewhere; null: that of `path`", None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every rank is told."""

    config: Config
    kept: nonfinite.Kept
    model: str
    """Folder of the weights that the run began with."""
    checkpoint: str | None
    """Folder of the trainer's part of it."""
    port: int


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(
        work,
        argv,
        USAGE,
        settings=lambda: listing(Settings),
        failures=(RuntimeError, ValueError, ArithmeticError, LookupError, OSError),
    )


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments, place="path")
    os.environ["TQDM_DISABLE"] = "1"  # transformers' bars
    # Before torch is imported: spinning threads of busy processes starve each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = nonfinite.find(given.path)
    run_dir = given.run_dir or folder.resolve().parent.parent
    check_count(run_dir)
    kept = nonfinite.read(folder)
    config = _on(_config_of(run_dir, ranks=len(kept.shares)), given.device)
    checkpoint = _checkpoint_before(run_dir, kept)
    print(f"{folder}: step {kept.step} of {run_dir}, {_count(len(kept.shares), 'rank')}")
    print(_weights_of(checkpoint, kept), flush=True)
    _start(_task(config, kept, run_dir, checkpoint))
    return 0


def _config_of(run_dir: Path, *, ranks: int) -> Config:
    """That of the run, which may have other ranks by now than those that the update had."""
    import yaml

    file = run_dir / "config.yaml"
    try:
        config = validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise RunDirError(f"{file} cannot be read ({error}); name the run by run_dir=") from error
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"ranks": ranks})})


def _on(config: Config, device: str | None) -> Config:
    """`config` with its ranks on `device`. Raises ConfigError where there are no GPUs for them."""
    if device not in (None, "cpu", "gpu"):
        raise ConfigError(f"device: cpu or gpu, got {device}")
    wanted = device or config.cluster.device
    if wanted == "gpu":
        import torch

        if (here := torch.cuda.device_count()) < config.trainer.ranks:
            raise ConfigError(
                f"the run has {_count(config.trainer.ranks, 'trainer rank')} on GPUs, and this machine has "
                f"{_count(here, 'GPU')}; device=cpu takes this machine's cores"
            )
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": wanted})})


def _checkpoint_before(run_dir: Path, kept: nonfinite.Kept) -> Path | None:
    """The newest one that was there before that step. Raises RunDirError where it is broken."""
    checkpoints = Checkpoints(run_dir, keep=1)
    before = [step for step in checkpoints.steps() if step < kept.step]
    found = checkpoints.at(before[-1]) if before else None
    if found is not None and (fault := fault_of(found)) is not None:
        raise RunDirError(f"{found} is broken: {fault}")
    return found


def _weights_of(checkpoint: Path | None, kept: nonfinite.Kept) -> str:
    step = int(checkpoint.name.removeprefix("step_")) if checkpoint else 0
    source = f"of {checkpoint}" if checkpoint else "that the run began with (no checkpoint from before is there)"
    gone = f", {kept.checkpoint} is gone" if kept.checkpoint not in (None, checkpoint and checkpoint.name) else ""
    if step == kept.step - 1:
        return f"Weights: those {source}{gone}: as they were"
    earlier = _count(kept.step - 1 - step, "step")
    return f"Weights: those {source}{gone}: {earlier} earlier, so that it may be finite with them"


def _task(config: Config, kept: nonfinite.Kept, run_dir: Path, checkpoint: Path | None) -> Task:
    from capo_ray.models.find import find_model

    return Task(
        config=config,
        kept=kept,
        model=str(find_model(config.policy, "policy", run_dir, seed=config.seed).folder),
        checkpoint=str(checkpoint / "trainer") if checkpoint else None,
        port=free_port(),
    )


# ---- in the ranks ----------------------------------------------------------------------------------------------------


def _start(task: Task) -> None:
    """Raises RuntimeError with what a rank said last."""
    if task.config.trainer.ranks == 1:
        _rank(0, task)
        return
    import torch
    from torch.multiprocessing.spawn import ProcessException

    try:
        torch.multiprocessing.spawn(_rank, args=(task,), nprocs=task.config.trainer.ranks)
    except ProcessException as error:
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error


def _rank(rank: int, task: Task) -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(task.port), "LOCAL_RANK": str(rank)}
    from capo_ray.engines.process_group import join

    join(rank, task.config.trainer.ranks, task.config.cluster.device)
    logging.getLogger("DeepSpeed").disabled = True  # it warns of what is looked for here
    for line in replayed(rank, task):
        if rank == 0:
            print(line, flush=True)
    dist.destroy_process_group()


def replayed(rank: int, task: Task) -> Iterator[str]:
    """What there is to say, line by line, the same on every rank. Collective: all ranks go through all of it."""
    with closing(_engine(task.config, rank, task)) as engine:
        whole = engine.update(task.kept.shares[rank]).metrics
        yield f"the whole update: {_described(whole)}"
    frozen = {"learning_rate": 0.0, "optimisation_passes": 1}
    still = task.config.model_copy(update={"trainer": task.config.trainer.model_copy(update=frozen)})
    with closing(_engine(still, rank, task)) as engine:
        found = False
        for piece in _pieces(task.kept):
            metrics = engine.update(piece.given(rank, piece.sequences)).metrics
            said = f"{piece.name}: {_described(metrics)}"
            if metrics["nonfinite_steps"]:
                found = True
                said += f": {piece.culprit(partial(_alone, engine, rank, piece))}"
            yield said
    if not found:
        within = "optimizer steps of this update that came before" if whole["nonfinite_steps"] else "steps since then"
        yield f"Every micro-batch alone is finite with these weights: it takes the {within}"


def _alone(engine: Any, rank: int, piece: Piece, sequence: TrainSequence) -> Metrics:
    metrics: Metrics = engine.update(piece.given(rank, [sequence])).metrics
    return metrics


def _engine(config: Config, rank: int, task: Task) -> Any:
    """In the state that the update was begun in, as far as the checkpoint goes."""
    from capo_ray.training.build import make_trainer

    engine = make_trainer(config, task.model, rank=rank, host="127.0.0.1", port=task.port)
    if task.checkpoint is not None:
        engine.restore(task.checkpoint)
    engine.step = task.kept.optimizer_step
    return engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A micro-batch of one rank, to be trained on alone while the others take part with nothing."""

    name: str
    rank: int
    sequences: Sequence[TrainSequence]
    whole: UpdateBatch
    denominator: float

    def given(self, rank: int, sequences: Sequence[TrainSequence]) -> UpdateBatch:
        """What `rank` is given so that all of them train on `sequences` alone."""
        mine = [list(sequences)] if rank == self.rank else [[]]
        return replace(self.whole, micro_batches=[mine], denominators=[self.denominator])

    def culprit(self, alone: Callable[[TrainSequence], Metrics]) -> str:
        for number, sequence in enumerate(self.sequences):
            metrics = alone(sequence)
            if metrics["nonfinite_steps"]:
                return f"the first is response {sequence.source or f'number {number}'}, by its {_where(metrics)}"
        return "each response alone is finite, their sum is not"


def _pieces(kept: nonfinite.Kept) -> Iterator[Piece]:
    """Every micro-batch that is not empty."""
    for step, denominator in enumerate(kept.shares[0].denominators):
        for place in range(len(kept.shares[0].micro_batches[step])):
            for rank, share in enumerate(kept.shares):
                if sequences := share.micro_batches[step][place]:
                    many = _count(len(sequences), "response")
                    yield Piece(
                        name=f"optimizer step {step}, rank {rank}, micro-batch {place} ({many})",
                        rank=rank,
                        sequences=sequences,
                        whole=share,
                        denominator=denominator,
                    )


def _where(metrics: Metrics) -> str:
    """What is computed first is what is not finite first."""
    if not isfinite(metrics["sampler_gap_mean"]):
        return "log-probabilities"
    return "gradient" if isfinite(metrics["loss"]) else "loss"


def _described(metrics: Metrics) -> str:
    steps = metrics["optimizer_steps"] + metrics["skipped_steps"]
    lost = metrics["nonfinite_steps"]
    norm = f"norm {metrics['grad_norm']:.4g}" if isfinite(metrics["grad_norm"]) else "norm not finite"
    share = f" ({lost:.0f} of {_count(int(steps), 'optimizer step')} skipped)" if lost and steps > 1 else ""
    return f"loss {metrics['loss']:.4g}, {norm}{share}, largest ratio {metrics.get('ratio_max', nan):.4g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    leave(main())
