"""The ranks of a supervised training, from the first step to the last.

Leaves out one rank's update (engines.train_deepspeed).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from capo_ray.engines.ports import free_port
from capo_ray.files.durable import replace_folder
from capo_ray.sft.conversations import tokenizer_of, write_tokenizer
from capo_ray.sft.examples import Examples, of_step
from capo_ray.sft.settings import Sft, checkpoint_of
from capo_ray.types import TrainSequence

if TYPE_CHECKING:
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine


def train_on(config: Sft, examples: Examples, device: Literal["cpu", "gpu"]) -> None:
    """All ranks; one is this process itself."""
    import torch

    if config.ranks == 1:
        _train(config, examples, 0, device)
        return
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    torch.multiprocessing.spawn(_spawned, args=(config, examples, device), nprocs=config.ranks)


def _spawned(rank: int, config: Sft, examples: Examples, device: Literal["cpu", "gpu"]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    _train(config, examples, rank, device)


def _train(config: Sft, examples: Examples, rank: int, device: Literal["cpu", "gpu"]) -> None:
    """One rank, from the first step to the last."""
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    count = len(examples.training)
    steps = config.steps or math.ceil(config.epochs * count / config.sequences_per_update)
    engine = DeepSpeedEngine(
        config.model.path,
        tokenizer=config.model.tokenizer,
        trainer=config.trainer(),
        algorithm=None,
        total_steps=steps,
        rank=rank,
        world_size=config.ranks,
        device=device,
        dtype=config.model.dtype,
        seed=config.seed,
    )
    with closing(engine):
        if config.resume:
            engine.restore(str(checkpoint_of(config)))
        report = print if rank == 0 else _silent
        report(
            f"{count} conversations to learn from, {len(examples.held_out)} held out, {examples.num_dropped} too long "
            "or without a solution"
        )
        _steps(config, examples.training, engine, steps, report)
        if examples.held_out:
            report(f"held-out loss {engine.evaluate(_batch(config, examples.held_out, rank))['nll']:.4f}")
        engine.save_pretrained(config.out)
        if rank == 0:
            write_tokenizer(tokenizer_of(config.model), Path(config.out))
        report(f"written to {config.out}")


def _steps(
    config: Sft, training: Sequence[TrainSequence], engine: DeepSpeedEngine, steps: int, report: Callable[..., None]
) -> None:
    since, num_tokens = perf_counter(), 0
    for step in range(engine.step, steps):
        chosen = [training[i] for i in of_step(step, len(training), config.sequences_per_update, config.seed)]
        metrics = engine.update(_batch(config, chosen, engine.rank)).metrics
        if metrics["nonfinite_steps"]:
            raise FloatingPointError(f"the gradient of step {step + 1} is not finite: try a lower learning_rate")
        num_tokens += sum(sequence.length for sequence in chosen)
        if (step + 1) % config.report_every == 0 or step + 1 == steps:
            seconds = perf_counter() - since
            report(
                f"step {step + 1}/{steps}  loss {metrics['loss']:.4f}  rate {metrics['learning_rate']:.2e}  "
                f"gradient {metrics['grad_norm']:.2f}  {num_tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
            since, num_tokens = perf_counter(), 0
        if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
            _save(engine, checkpoint_of(config))


def _silent(*_: object, **__: object) -> None:
    pass


def _batch(config: Sft, sequences: Sequence[TrainSequence], rank: int) -> Any:
    from capo_ray.engines.protocols import UpdateBatch
    from capo_ray.learn.batch import denominators, loss_length
    from capo_ray.learn.plan import plan, select, sizes_of

    made = plan(
        sizes_of(sequences),
        ranks=config.ranks,
        tokens_per_micro_batch=config.tokens_per_micro_batch,
        packing=config.packing,
    )
    counts = [loss_length(sequence) for sequence in sequences]
    return UpdateBatch(
        micro_batches=select(sequences, made[rank]),
        denominators=denominators(counts, made, "token_mean", max_response_tokens=0),
    )


def _save(engine: DeepSpeedEngine, folder: Path) -> None:
    beside = folder.with_name(folder.name + ".new")
    engine.save(str(beside))
    if engine.rank == 0:
        replace_folder(beside, folder)
