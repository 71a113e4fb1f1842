"""How fast is an update, what memory does it take, and does the way in which it is computed change its result?

    python benchmarks/update.py [ranks=1,2] [prompt=256] [response=128] [group=8] [out=FILE.json]

A random model with a large vocabulary makes three updates on made-up groups of responses (lognormal lengths), in every
way that trainer.packing and trainer.head_tokens allow, each in processes of its own. Ways are measured in turn, round
by round, and ratios are taken within a round, on CPU of time on the core: machines are noisy. Prints tokens per second
of all ranks (prompts counted once for each response, however they are computed), by the clock and per second of a core,
memory of each rank beyond what it held before its first update, and how far the weights are from those of the first
row. Ends with 1 where that is more than `tolerance`. On GPU with device=gpu.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

from capo_ray.config.block import Block, setting
from capo_ray.config.blocks import Trainer
from capo_ray.config.listing import listing
from capo_ray.config.method import Algorithm
from capo_ray.config.own_settings import read_own
from capo_ray.engines.ports import free_port
from capo_ray.learn.batch import denominators
from capo_ray.learn.plan import plan, select, sizes_of
from capo_ray.program import run_program
from capo_ray.types import TrainSequence

WHOLE = 10**9
WAYS: Mapping[str, Mapping[str, Any]] = {
    "padded, whole head": {"packing": "padded", "head_tokens": WHOLE},
    "padded": {"packing": "padded"},
    "packed": {"packing": "packed"},
    "shared": {"packing": "shared"},
}
UPDATES = 3
"""The first is not timed: allocators and libraries warm up."""


class Settings(Block):
    """Of this program."""

    ranks: tuple[int, ...] = setting("ranks, a table for each", (1,), unit="processes")
    rounds: int = setting("times that each way is measured", 3, gt=0)
    groups: int = setting("prompts", 2, gt=0)
    group: int = setting("responses to each", 8, gt=0)
    prompt: int = setting("tokens of a prompt", 256, gt=0)
    response: int = setting("median tokens of a response", 64, gt=0)
    spread: float = setting("of the logarithm of response lengths", 0.5)
    vocabulary: int = setting("entries", 151_936, gt=1)
    hidden: int = setting("width of the model", 128, gt=0)
    layers: int = setting("of the model", 4, gt=0)
    tokens: int = setting("tokens of a micro-batch", 4096, gt=0)
    zero_stage: int = setting("DeepSpeed's", 2, ge=0, le=3)
    checkpointing: bool = setting("of activations", True)
    device: Literal["cpu", "gpu"] = setting("where ranks run", "cpu")
    tolerance: float = setting("most that a weight may differ by: a tenth of the learning rate", 1e-5, ge=0)
    out: Path | None = setting("JSON with every figure", None)


def sequences(given: Settings) -> list[TrainSequence]:
    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(given.vocabulary) for _ in range(count))

    made = []
    for _ in range(given.groups):
        prompt = tokens(given.prompt)
        for _ in range(given.group):
            length = int(given.response * rng.lognormvariate(0, given.spread)) + 1
            length = min(length, given.tokens - given.prompt)
            advantages = tuple(rng.gauss(0, 1) for _ in range(length))
            made.append(
                TrainSequence(
                    prompt_ids=prompt, token_ids=tokens(length), advantages=advantages, logprobs=(-11.0,) * length
                )
            )
    return made


def rank_main(connection: Any, given: Settings, way: str, rank: int, ranks: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} if given.device == "cpu" else {}
    import torch

    from capo_ray.engines.protocols import UpdateBatch
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    trainer = Trainer(
        ranks=ranks,
        zero_stage=given.zero_stage,
        learning_rate=1e-4,
        tokens_per_micro_batch=given.tokens,
        gradient_checkpointing=given.checkpointing,
        **WAYS[way],
    )
    config = {
        "model_type": "qwen2",
        "vocab_size": given.vocabulary,
        "hidden_size": given.hidden,
        "intermediate_size": 4 * given.hidden,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.hidden // 64,
        "num_key_value_heads": given.hidden // 64,
        "tie_word_embeddings": True,
    }
    engine = DeepSpeedEngine(
        config,
        trainer=trainer,
        algorithm=Algorithm(kl_weight=0.0),
        total_steps=100,
        rank=rank,
        world_size=ranks,
        device=given.device,
        dtype="float32" if given.device == "cpu" else "bfloat16",
    )
    batch = sequences(given)
    made = plan(sizes_of(batch), ranks=ranks, tokens_per_micro_batch=given.tokens, packing=trainer.packing)
    counts = [len(one.token_ids) for one in batch]
    share = UpdateBatch(
        micro_batches=select(batch, made[rank]),
        denominators=denominators(counts, made, "response_mean", max_response_tokens=0),
    )
    before, seconds = peak_bytes(given.device), []
    for _ in range(UPDATES):
        start, on_core = perf_counter(), process_time()
        metrics = engine.update(share).metrics
        seconds.append((perf_counter() - start, process_time() - on_core))
    held = peak_bytes(given.device) - before
    weights = torch.cat([tensor.float().flatten() for _, tensor in engine.weights()])
    micro_batches = sum(len(step) for step in share.micro_batches)
    connection.send(
        (seconds[1:], held, metrics["grad_norm"], micro_batches, weights[:: max(1, len(weights) // 10**5)].tolist())
    )
    engine.close()


def peak_bytes(device: str) -> int:
    if device == "gpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(given: Settings, way: str, ranks: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    port, started = free_port(), []
    for rank in range(ranks):
        mine, theirs = context.Pipe()
        process = context.Process(target=rank_main, args=(theirs, given, way, rank, ranks, port))
        process.start()
        theirs.close()
        started.append((process, mine))
    answers = [connection.recv() for _, connection in started]
    for process, _ in started:
        process.join()
    tokens = sum(one.length for one in sequences(given))
    updates = list(zip(*(answer[0] for answer in answers), strict=True))
    return {
        "tokens_per_s": tokens / median(max(clock for clock, _ in update) for update in updates),
        "tokens_per_core_s": tokens / median(sum(core for _, core in update) for update in updates),
        "gib": [answer[1] / 2**30 for answer in answers],
        "grad_norm": answers[0][2],
        "micro_batches": answers[0][3],
        "weights": answers[0][4],
    }


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    found: dict[str, Any] = {"settings": given.model_dump(mode="json"), "cores": os.cpu_count()}
    known: list[float] = []
    by = "tokens_per_core_s" if given.device == "cpu" else "tokens_per_s"
    for ranks in given.ranks:
        rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number, way in product(range(given.rounds), WAYS):
            rounds[way].append(one := measured(given, way, ranks))
            print(f"round {number + 1}, {ranks} ranks, {way}: {one[by]:,.0f} {by}", file=sys.stderr, flush=True)
        base = rounds[next(iter(WAYS))]
        known = known or base[0]["weights"]
        print(f"{ranks} ranks: tokens/s, of a core, times the first way, micro-batches, gap of weights, GiB")
        for way, figures in rounds.items():
            row = found[f"{ranks} ranks, {way}"] = row_of(figures, base, known, by)
            gib = " ".join(f"{rank:.2f}" for rank in row["gib"])
            print(
                f"  {way:20} {row['tokens_per_s']:8,.0f} {row['tokens_per_core_s']:8,.0f} {row['ratio']:6.2f} "
                f"{row['micro_batches']:3} {row['gap']:.1e}  {gib}",
                flush=True,
            )
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(any(row["gap"] > given.tolerance for name, row in found.items() if "ranks, " in name))


def row_of(figures: list[dict[str, Any]], base: list[dict[str, Any]], known: list[float], by: str) -> dict[str, Any]:
    """`figures` of a way by round, `base` of the first way, `known`: the weights to be compared with; `by`: the figure
    of which ratios are taken."""
    pairs = zip(figures[0]["weights"], known, strict=True)
    return {name: median(one[name] for one in figures) for name in ("tokens_per_s", "tokens_per_core_s")} | {
        "ratio": median(one[by] / other[by] for one, other in zip(figures, base, strict=True)),
        "gib": [median(ranks) for ranks in zip(*(one["gib"] for one in figures), strict=True)],
        "micro_batches": figures[0]["micro_batches"],
        "gap": max(abs(one - other) for one, other in pairs),
        "grad_norm": figures[0]["grad_norm"],
    }


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True))
