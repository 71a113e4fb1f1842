"""Ranks of the trainer as child processes that live through many tests, and what they are asked to do.

Starting a rank costs seconds of imports, so a process group is made once and engines come and go in it.
"""

import multiprocessing
import os
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from capo_ray.config.blocks import Trainer
from capo_ray.config.method import Algorithm
from capo_ray.engines.ports import free_port
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.learn.batch import denominators, loss_length
from capo_ray.learn.plan import plan, select, sizes_of
from capo_ray.types import TrainSequence

VOCABULARY, LONGEST = 40, 12
MODEL = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
PATIENCE_S = 200


def sequences(count: int, seed: int = 0, scale: float = 1.0) -> tuple[TrainSequence, ...]:
    rng = random.Random(seed)

    def tokens(fewest: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(fewest, most)))

    made = []
    for _ in range(count):
        prompt, response = tokens(1, 6), tokens(1, LONGEST)
        made.append(
            TrainSequence(
                prompt_ids=prompt,
                token_ids=response,
                advantages=tuple(scale * rng.gauss(0, 1) for _ in response),
                logprobs=tuple(-3.7 + rng.gauss(0, 0.2) for _ in response),
                loss_mask=tuple(rng.random() < 0.9 for _ in response) if rng.random() < 0.3 else (),
            )
        )
    return tuple(made)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training set-up; every rank makes the same from it."""

    sequences: tuple[TrainSequence, ...] = sequences(9)
    model: dict[str, Any] | str = field(default_factory=lambda: MODEL)
    tokenizer: str | None = None
    stage: int = 2
    budget: int = 1000
    per_update: int | None = None
    temperature: float = 0.7
    dtype: str = "float32"
    supervised: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> "Case":
        return replace(self, **changes)

    def trainer_block(self, ranks: int) -> Trainer:
        given = {"learning_rate": 1e-2, "warmup_steps": 2, "schedule": "cosine", "gradient_checkpointing": False}
        given |= self.trainer
        return Trainer(ranks=ranks, zero_stage=self.stage, tokens_per_micro_batch=self.budget, **given)

    def algorithm_block(self) -> Algorithm:
        return Algorithm(**{"kl_weight": 0.0, **self.algorithm})


@contextmanager
def engine_of(case: Case, rank: int, ranks: int) -> Iterator[Any]:
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    engine = DeepSpeedEngine(
        case.model,
        trainer=case.trainer_block(ranks),
        algorithm=None if case.supervised else case.algorithm_block(),
        total_steps=20,
        temperature=case.temperature,
        tokenizer=case.tokenizer,
        rank=rank,
        world_size=ranks,
        device="cpu",
        dtype=case.dtype,  # type: ignore[arg-type]
    )
    try:
        yield engine
    finally:
        engine.close()


def batch_of(case: Case, rank: int, ranks: int) -> UpdateBatch:
    made = plan(
        sizes_of(case.sequences),
        ranks=ranks,
        tokens_per_micro_batch=case.budget,
        responses_per_update=case.per_update,
        packing=case.trainer_block(ranks).packing,
    )
    aggregation = "token_mean" if case.supervised else case.algorithm_block().aggregation
    counts = [loss_length(s) for s in case.sequences]
    return UpdateBatch(
        micro_batches=select(case.sequences, made[rank]),
        denominators=denominators(counts, made, aggregation, max_response_tokens=LONGEST),
    )


def weights_of(engine: Any) -> dict[str, Any]:
    return {name: tensor.clone().float().numpy() for name, tensor in engine.weights()}


def updated(rank: int, ranks: int, case: Case, times: int = 1) -> Any:
    """Metrics of each update, and the weights after the last."""
    with engine_of(case, rank, ranks) as engine:
        batch = batch_of(case, rank, ranks)
        return [engine.update(batch).metrics for _ in range(times)], weights_of(engine)


def _serve(connection: Any, rank: int, ranks: int, port: int) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    while (asked := connection.recv()) is not None:
        do, arguments = asked
        try:
            connection.send((do(rank, ranks, *arguments), None))
        except BaseException as error:
            connection.send((traceback.format_exc(), error.args))
    dist.destroy_process_group()


class Ranks:
    """`count` ranks; calling it runs a function of this module on all of them, and returns what each says."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._start()

    def _start(self) -> None:
        count = self._count
        context = multiprocessing.get_context("spawn")
        port = free_port()
        pipes = [context.Pipe() for _ in range(count)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, count, port), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def each(self, do: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not all(process.is_alive() for process in self._processes):  # a test before this one had them killed
            self._start()
        for connection in self._connections:
            connection.send((do, arguments))
        results = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(PATIENCE_S):
                self._kill()  # it waits for a rank that failed, and would hold up every later test
                raise TimeoutError(f"rank {rank} did not answer {do.__name__} in {PATIENCE_S} s; before it: {results}")
            results.append(connection.recv())
        for rank, (result, error) in enumerate(results):
            if error is not None:
                raise RuntimeError(f"rank {rank}: {result}")
        return [result for result, _ in results]

    def __call__(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return self.each(do, *arguments)[0]

    def stop(self) -> None:
        """Ask all to end before waiting for any: leaving the process group is collective."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            if process.is_alive():
                connection.send(None)
        for process in self._processes:
            process.join(20)
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
