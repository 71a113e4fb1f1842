"""The trainer: one DeepSpeed rank.

Every method is collective. The loss of an optimizer step is a weighted sum over the tokens of all ranks (see
`learn.batch`); DeepSpeed takes the mean of the ranks' gradients, so each rank scales its loss by their number, and
accumulation boundaries are set by hand, so nothing else divides it. The learning rate is a function of the number of
optimizer steps, skipped ones included. Leaves out: which sequences go where (`learn.plan`), how weights travel
(`weights_*`) and who starts the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from capo_ray.config.blocks import Trainer
from capo_ray.config.method import Algorithm
from capo_ray.engines import causal_model, lora
from capo_ray.engines.ahead import Ahead, Nested
from capo_ray.engines.optimizer_pieces import pieces_of, put_back, replicated, steps_taken
from capo_ray.engines.optimizer_step import move
from capo_ray.engines.outgoing import Kind, Outgoing, Shapes
from capo_ray.engines.process_group import join, warn_if_slow
from capo_ray.engines.protocols import UpdateBatch
from capo_ray.engines.scorers import check_company, reference_of, scorer_of
from capo_ray.engines.shelf import give_back
from capo_ray.engines.trainer_files import Saved, read_random_state, write_pieces, write_random_state, write_weights
from capo_ray.engines.trainer_memory import TrainerMemory
from capo_ray.engines.trainer_metrics import Sums
from capo_ray.engines.trainer_settings import decay_groups, deepspeed_config, learning_rate, objective_of, zero_options
from capo_ray.engines.trainer_state import DESCRIPTION, TrainerState, read_state
from capo_ray.learn.batch import Aggregation, MicroBatch, collate, standardised
from capo_ray.learn.loss import NLL_METRICS, Loss, Objective, nll, policy_loss, policy_metrics
from capo_ray.types import Metrics, TrainSequence, Update


class DeepSpeedEngine:
    """See protocols.TrainEngine. `algorithm=None` trains on the tokens themselves (supervised).

    More than one rank needs MASTER_ADDR and MASTER_PORT in the environment; on GPU, LOCAL_RANK names the device (0
    where each rank sees one only). On CPU OMP_NUM_THREADS=1 belongs in the environment before torch is imported.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any],
        *,
        trainer: Trainer,
        algorithm: Algorithm | None,
        total_steps: int,
        temperature: float = 1.0,
        tokenizer: str | None = None,
        sends: Kind = "merged",
        rank: int = 0,
        world_size: int = 1,
        device: Literal["cpu", "gpu"] = "gpu",
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        seed: int = 0,
    ) -> None:
        """`model` as in `causal_model.make`; `total_steps`: optimizer steps that the schedule spans; `tokenizer`: the
        folder copied by `save_pretrained`, null: the model's own; `sends`: what `weights` yields with an adapter.
        With a KL weight the reference is the model as it starts; with an adapter, the model without it."""
        self.rank, self.world_size = rank, world_size
        self._trainer, self._algorithm = trainer, algorithm
        self._total_steps, self._temperature = total_steps, temperature
        folder = model if isinstance(model, str) and not model.endswith(".json") else None
        self._aggregation: Aggregation = algorithm.aggregation if algorithm else "token_mean"
        self.step = self._version = 0
        self._owns_group = not dist.is_initialized()
        self._device = join(rank, world_size, device)
        precision = getattr(torch, dtype)
        warn_if_slow(precision, self._device, rank)
        self._objective = objective_of(algorithm) if algorithm else Objective()
        zero_three = zero_options(trainer) if trainer.zero_stage == 3 else None
        self._model = causal_model.make(model, dtype=precision, seed=seed, zero_three=zero_three)
        if trainer.lora is not None:
            lora.adapt(self._model, trainer.lora, seed=seed)
            torch.manual_seed(seed + rank)  # what one rank drops another need not
        self._outgoing = Outgoing(self._model, trainer, sends=sends, folder=folder, tokenizer=tokenizer or folder)
        has_reference = self._objective.kl_weight > 0
        self._reference: Any = None
        if has_reference and trainer.lora is None:
            frozen = causal_model.make(model, dtype=precision, seed=seed, zero_three=zero_three)
            self._reference = reference_of(frozen, trainer, self._device, world_size)
        self._metrics = policy_metrics(self._objective, reference=has_reference) if algorithm else NLL_METRICS
        if trainer.gradient_checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": trainer.zero_stage == 3})
            self._model.enable_input_require_grads()
        self._engine = self._initialize()
        if has_reference and trainer.lora is not None:
            self._reference = lora.WithoutAdapter(self._engine, self._model)
        vocabulary = self._model.get_input_embeddings().num_embeddings
        for scorer in filter(None, (self._engine, self._reference)):
            check_company(scorer, trainer.packing, vocabulary, precision, self._device)
        memory = TrainerMemory(self._engine, self._reference, device=self._device)
        self.sleep, self.wake, self.give_back = memory.put_aside, memory.take_back, give_back
        self._ahead = Ahead(
            lambda sequences: self._collate(sequences, 1.0),
            temperature=temperature,
            budget=trainer.tokens_per_micro_batch,
            packing=trainer.packing,
            device=self._device,
        )

    def _initialize(self) -> Any:
        import deepspeed

        optimizer = torch.optim.AdamW(
            decay_groups(self._model, self._trainer.weight_decay),
            lr=self._trainer.learning_rate,
            betas=self._trainer.betas,
            fused=True,  # one kernel for the whole step, in place of several for each tensor
        )
        engine, *_ = deepspeed.initialize(
            model=scorer_of(self._model, self._trainer, entropy_gradient=self._objective.entropy_weight > 0),
            optimizer=optimizer,
            config=deepspeed_config(self._trainer, self._model, self.world_size),
            dist_init_required=False,
        )
        engine.train()
        lora.rest(self._model)
        return engine

    def update(self, batch: UpdateBatch) -> Update:
        """Train on one batch. Metrics are those of all ranks, means over the tokens of every pass where they are means;
        losses and the gradient's norm (before clipping) are means over optimizer steps. One whose gradient is not
        finite is skipped on all ranks, and counted."""
        start = perf_counter()
        num_steps, passes = len(batch.micro_batches), self._trainer.optimisation_passes
        steps = [
            [
                standardised(self._collate(sequences, denominator), batch.centre, batch.spread)
                for sequences in micro_batches
            ]
            for micro_batches, denominator in zip(batch.micro_batches, batch.denominators, strict=True)
        ]
        teaching = self._teaching(steps)
        old = self._old_logprobs(steps, batch, teaching)
        reference = self._reference_logprobs(steps, batch)
        self._ahead.clear()
        sums, norms, rate = Sums(), [], 0.0
        for step in (step for _ in range(passes) for step in range(num_steps)):
            rate = learning_rate(self._trainer, self.step, self._total_steps)
            self.step += 1
            if teaching[step]:
                beside = (old[step], reference[step] if reference else None)
                with lora.learning(self._model):
                    norms.append(self._optimizer_step(steps[step], rate, sums, *beside))
        self._version += 1
        metrics = sums.reduce(self._metrics, len(norms), self._device)
        taken = [norm for norm in norms if math.isfinite(norm)]
        metrics |= {
            "grad_norm": sum(taken) / len(taken) if taken else math.nan if norms else 0.0,
            "learning_rate": rate,
            "optimizer_steps": float(len(taken)),
            "skipped_steps": float(num_steps * passes - len(taken)),
            "nonfinite_steps": float(len(norms) - len(taken)),
            "seconds": perf_counter() - start,
        }
        return Update(metrics=metrics, version=self._version)

    def score(self, mine: Sequence[TrainSequence] | None, *, old: bool) -> None:
        """Between two updates: log-probabilities of the responses of the next one, by the reference where there is
        one and by the policy where `old`. `mine`: this rank's share; None: it could not be had, and none is scored."""
        scorers = {"old": self._engine} if old else {}
        if self._reference is not None:
            scorers["reference"] = self._reference
        self._ahead.score(scorers, mine)

    def evaluate(self, batch: UpdateBatch) -> Metrics:
        """Mean negative log-probability and entropy per token, without learning anything."""
        sums = Sums()
        with torch.no_grad():
            for micro_batches, denominator in zip(batch.micro_batches, batch.denominators, strict=True):
                for sequences in micro_batches:
                    micro_batch = self._collate(sequences, denominator)
                    logprobs, entropy = self._engine(micro_batch, self._temperature)
                    if not micro_batch.empty:
                        sums.add(nll(logprobs, weights=micro_batch.weights, entropy=entropy))
        return sums.reduce(NLL_METRICS, len(batch.micro_batches), self._device)

    def _collate(self, sequences: Sequence[TrainSequence], denominator: float) -> MicroBatch:
        return collate(sequences, self._aggregation, denominator, packing=self._trainer.packing, device=self._device)

    def _teaching(self, steps: Sequence[Sequence[MicroBatch]]) -> list[bool]:
        """Which optimizer steps have anything to learn from, on any rank; AdamW would move on a zero gradient too."""
        if self._algorithm is None or self._objective.kl_weight or self._objective.entropy_weight or not steps:
            return [True] * len(steps)
        largest = torch.tensor(
            [max(float(batch.advantages.abs().max()) for batch in step) for step in steps], device=self._device
        )
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return [value > 0 for value in largest.tolist()]

    def _old_logprobs(
        self, steps: Sequence[Sequence[MicroBatch]], batch: UpdateBatch, teaching: Sequence[bool]
    ) -> Nested:
        """None yet for the step that is taken first: they are those of its own forward pass."""
        if self._algorithm is None:
            return [[] for _ in steps]
        if self._algorithm.old_logprobs == "sampler":
            return [[batch.sampler_logprobs for batch in step] for step in steps]
        if known := self._ahead.of("old", batch.micro_batches):
            return known
        later = [place for place, teaches in enumerate(teaching) if teaches][1:]
        scored = iter(self._score(self._engine, [steps[place] for place in later]))
        return [next(scored) if place in later else [] for place in range(len(steps))]

    def _reference_logprobs(self, steps: Sequence[Sequence[MicroBatch]], batch: UpdateBatch) -> Nested | None:
        if self._reference is None:
            return None
        return self._ahead.of("reference", batch.micro_batches) or self._score(self._reference, steps)

    @torch.no_grad()
    def _score(self, scorer: Any, steps: Sequence[Sequence[MicroBatch]]) -> Nested:
        return [[scorer(batch, self._temperature)[0] for batch in step] for step in steps]

    def _optimizer_step(
        self,
        micro_batches: Sequence[MicroBatch],
        rate: float,
        sums: Sums,
        old: list[Tensor],
        reference: list[Tensor] | None,
    ) -> float:
        """One step over all ranks; returns what `move` does. What `old` lacks is put there."""
        for index, batch in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            logprobs, entropy = self._engine(batch, self._temperature)
            if len(old) == index:
                old.append(logprobs.detach())
            if batch.empty:
                value = 0.0 * logprobs.sum()
            else:
                loss = self._loss(batch, logprobs, entropy, old[index], reference[index] if reference else None)
                sums.add(loss)
                value = loss.value
            self._engine.backward(value * self.world_size)
            if index < len(micro_batches) - 1:
                self._engine.step()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        looks = self._trainer.zero_stage > 0 or self._model.dtype != torch.float32
        return move(self._engine, self._model, looks=looks)

    def _loss(
        self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor, old: Tensor, reference: Tensor | None
    ) -> Loss:
        if self._algorithm is None:
            return nll(logprobs, weights=batch.weights, entropy=entropy)
        return policy_loss(
            logprobs,
            old=old,
            sampler=batch.sampler_logprobs,
            reference=reference,
            advantages=batch.advantages,
            weights=batch.weights,
            rows=batch.rows,
            objective=self._objective,
            entropy=entropy,
        )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """What a sync sends, see `Outgoing.sent`; collective under ZeRO-3."""
        return self._outgoing.sent()

    def weight_shapes(self) -> Shapes:
        """What `weights` will yield, without gathering anything."""
        return self._outgoing.sent_shapes()

    def save_pretrained(self, path: str) -> None:
        """The model as a folder that transformers and vLLM load, or its adapter as one of peft's; rank 0 writes."""
        kept = {name: tensor.cpu() for name, tensor in self._outgoing.kept() if self.rank == 0}
        if self.rank == 0:
            self._outgoing.describe(Path(path))
            write_weights(kept, Path(path), adapter=self._trainer.lora is not None)
        dist.barrier()

    def save(self, path: str) -> None:
        """Everything that `restore` needs to go on with the same numbers, into the folder `path`: each rank writes what
        it holds."""
        Path(path).mkdir(parents=True, exist_ok=True)
        mine = [] if self.rank and replicated(self._engine) else pieces_of(self._engine, lora.learnt(self._model))
        written = [*write_pieces(path, self.rank, mine), write_random_state(path, self.rank)]
        of_all: list[list[str]] = [[]] * self.world_size
        dist.all_gather_object(of_all, written)
        if self.rank == 0:
            self._state([name for names in of_all for name in names]).write(path)
            self._outgoing.describe(Path(path) / DESCRIPTION)
        dist.barrier()

    def restore(self, path: str) -> None:
        """What ranks of any number and ZeRO stage have saved. Raises ValueError when `path` holds no checkpoint, or one
        of another model."""
        saved = read_state(path)
        self._state().check_continues(saved, path)
        with closing(Saved(path, saved.pieces)) as pieces:
            pieces.fill(pieces_of(self._engine, lora.learnt(self._model)))
        put_back(self._engine, saved.taken)
        self.step, self._version = saved.step, saved.version
        read_random_state(path, self.rank, ranks=saved.ranks)
        self._ahead.clear()

    def _state(self, files: Sequence[str] = ()) -> TrainerState:
        return TrainerState(
            step=self.step,
            taken=steps_taken(self._engine),
            version=self._version,
            ranks=self.world_size,
            zero_stage=self._trainer.zero_stage,
            dtype=str(self._model.dtype),
            architecture=type(self._model).__name__,
            shapes={name: list(shape) for name, _, shape in self._outgoing.kept_shapes()},
            files=files,
            lora=self._trainer.lora.shape() if self._trainer.lora else None,
            base=self._outgoing.base,
        )

    def close(self) -> None:
        """Leave the process group, unless somebody else made it; without that a rank aborts at exit."""
        self._engine.destroy()
        if self._owns_group:
            dist.destroy_process_group()
