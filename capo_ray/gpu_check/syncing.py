"""Weights from a trainer rank into a rollout engine, as a run moves them, and whether both then mean the same by them.

The engine starts from other random weights, so that what is compared can differ: the log-probabilities of its samples
are far from the trainer's before the first sync and must be near after it, and again after an update and a second sync.
`ipc` shares one card, `nccl` wants two, `shm` is for CPU. Leaves out many workers and ranks (the tests, on CPU).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from capo_ray.config.blocks import Trainer
from capo_ray.config.method import Algorithm
from capo_ray.gpu_check.here import want_weight_sync
from capo_ray.gpu_check.notes import Cannot, Notes
from capo_ray.gpu_check.sampling import open_rollout, prompts
from capo_ray.gpu_check.shapes import MODELS, Dtype, shape_of, write_model
from capo_ray.gpu_check.training import refuse_nonfinite
from capo_ray.planning.machine import gpu_sizes
from capo_ray.types import Prompt, Rollout, Sampling, TrainSequence

if TYPE_CHECKING:
    from capo_ray.engines.protocols import UpdateBatch
    from capo_ray.engines.rollout_vllm import VllmRollout
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

Transport = Literal["shm", "ipc", "nccl"]
NEAR = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far log-probabilities of one model may be apart between two libraries, on average over tokens."""
GPU_SHARE = 0.25
"""Of a card's memory, for the engine: the trainer has the rest where they share it."""
PATIENCE_S = 90.0
"""For one answer of the engine."""


class EngineThread:
    """An event loop in a thread of its own, for the engine: the trainer's calls block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine").start()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.start(coroutine).result(PATIENCE_S)


def work(notes: Notes, transport: Transport) -> None:
    kind = _transport(notes, transport)
    want_weight_sync()
    config, dtype = MODELS["0.5B" if notes.on_gpu else "tiny"], _dtype(notes)
    notes.put(transport=kind, parameters=shape_of(config).parameters, dtype=dtype)
    notes.say("a model with random weights")
    folder = write_model(notes.scratch / "model", config, dtype=dtype, seed=1)
    thread = EngineThread()
    notes.say("start of the engine")  # before the trainer: vLLM measures the whole card
    engine = thread.start(_open(notes, folder, dtype, kind)).result()
    try:
        notes.say("start of the trainer")
        trainer = _trainer(notes, config, dtype)
        _syncs(notes, thread, engine, trainer, kind, config["vocab_size"])
        trainer.close()
    finally:
        engine.close()


def _transport(notes: Notes, wanted: Transport) -> Transport:
    """Raises Cannot where there are too few cards for it."""
    cards = len(gpu_sizes()) if notes.on_gpu else 0
    if wanted == "nccl" and cards < 2:
        raise Cannot(f"nccl wants two cards, and here {'is one' if cards else 'is none'}")
    return wanted if notes.on_gpu else "shm"


def _dtype(notes: Notes) -> Dtype:
    return "bfloat16" if notes.on_gpu else "float32"


async def _open(notes: Notes, folder: str, dtype: Dtype, kind: Transport) -> VllmRollout:
    """On the second card where weights go from card to card: vLLM's process sees what it is started with. Handles of
    a card's memory it takes only when it is told that they come from a friend."""
    if kind == "ipc":
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if kind == "nccl":
        os.environ["CUDA_VISIBLE_DEVICES"] = (before or "0,1").split(",")[1]
    try:
        return open_rollout(notes, folder, dtype, share=GPU_SHARE, window=1024, transport=f"capo_{kind}")
    finally:
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        elif kind == "nccl":
            del os.environ["CUDA_VISIBLE_DEVICES"]


def _trainer(notes: Notes, config: Mapping[str, Any], dtype: Dtype) -> DeepSpeedEngine:
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(
        config,
        trainer=Trainer(
            learning_rate=1e-3, zero_stage=2, tokens_per_micro_batch=8192, schedule="constant", max_grad_norm=1.0
        ),
        algorithm=Algorithm(kl_weight=0.0),
        total_steps=10,
        device=notes.device,
        dtype=dtype,
        seed=2,
    )


def _syncs(
    notes: Notes,
    thread: EngineThread,
    engine: VllmRollout,
    trainer: DeepSpeedEngine,
    kind: Transport,
    vocabulary: int,
) -> None:
    from capo_ray.engines.receivers import Receivers

    asked = prompts(8, 32, vocabulary, seed=3)
    notes.say("samples of the engine's own weights")
    before = _gap(thread, engine, trainer, asked)
    notes.put(gap_before=before)
    notes.say("connecting")
    begun = time.perf_counter()
    receivers = Receivers(
        {engine.name: lambda stage, given: thread.start(engine.take_weights(stage, given))},
        gpus_each=1,
        patience_s=PATIENCE_S,
    )
    sender = _sender(kind, receivers, trainer)
    notes.put(connect_seconds=round(time.perf_counter() - begun, 3))
    checksums = []
    for version in (1, 2):
        notes.say(f"sync {version} of 2")
        begun = time.perf_counter()
        checksums.append(sender.send(trainer.weights(), version))
        notes.put(**{f"sync_{version}_seconds": round(time.perf_counter() - begun, 3)})
        notes.say(f"samples after sync {version}, and an update")
        notes.put(**{f"gap_{version}": (gap := _gap(thread, engine, trainer, asked))})
        _check(before, gap, version, _dtype(notes))
    notes.put(checksums=checksums)
    sender.close()
    if checksums[0] == checksums[1]:
        raise RuntimeError("the update between the syncs changed no weight: the second sync proves nothing")


def _sender(kind: Transport, receivers: Any, trainer: DeepSpeedEngine) -> Any:
    if kind == "shm":
        from capo_ray.engines.weights_shm import ShmSender

        return ShmSender(receivers)
    from capo_ray.engines.weights_gpu import GpuSender

    return GpuSender(kind, receivers, trainer.weight_shapes, rank=0, host="127.0.0.1")


def _gap(thread: EngineThread, engine: VllmRollout, trainer: DeepSpeedEngine, asked: Sequence[Prompt]) -> float:
    """Mean distance of the engine's log-probabilities from the trainer's, over the tokens of a response to each prompt.
    Measuring it is an update: the trainer's weights are others afterwards."""
    rollouts = thread.call(_responses(engine, asked))
    update = trainer.update(batch_of(asked, rollouts))
    refuse_nonfinite(update)
    return float(f"{update.metrics['sampler_gap_mean']:.3g}")


async def _responses(engine: VllmRollout, asked: Sequence[Prompt]) -> list[Rollout]:
    async def one(prompt: Prompt) -> Rollout:
        (rollout,) = [rollout async for rollout in engine.generate(prompt, Sampling(max_tokens=64), {0: 1})]
        return rollout

    return list(await asyncio.gather(*(one(prompt) for prompt in asked)))


def batch_of(asked: Sequence[Prompt], rollouts: Sequence[Rollout]) -> UpdateBatch:
    """One optimizer step of one micro-batch; every other response is a good one."""
    from capo_ray.engines.protocols import UpdateBatch

    sequences = tuple(
        TrainSequence(
            prompt_ids=prompt.token_ids,
            token_ids=rollout.token_ids,
            advantages=(1.0 if n % 2 else -1.0,) * len(rollout.token_ids),
            logprobs=rollout.logprobs,
        )
        for n, (prompt, rollout) in enumerate(zip(asked, rollouts, strict=True))
    )
    return UpdateBatch(micro_batches=((sequences,),), denominators=(float(len(sequences)),))


def _check(before: float, after: float, version: int, dtype: Dtype) -> None:
    if not after <= NEAR[dtype]:  # which nan is not either
        raise RuntimeError(
            f"after sync {version} engine and trainer differ by {after:g} in log-probability on average; "
            f"{NEAR[dtype]:g} is the most that {dtype} explains"
        )
    if not before >= 2 * NEAR[dtype]:
        raise RuntimeError(
            f"before the first sync engine and trainer differed by {before:g} alone, so that being near after it "
            "proves nothing"
        )
