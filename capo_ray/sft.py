"""`python -m capo_ray.sft`: supervised training on conversations, with the engine that the RL trainer uses.

    python -m capo_ray.sft model=FOLDER data=FILE.jsonl out=FOLDER learning_rate=1e-5
    python -m capo_ray.sft model=config.json tokenizer=FOLDER data=FILE.jsonl out=FOLDER   # from random weights

A line of the data is {"messages": [{"role", "content"}, ...]}. Only what an assistant says carries loss, the token that
ends its turn included; the rest is context. A turn is tokenised apart from what comes before it, as it is when the
model is sampled. Which sequences step s learns from is a function of (seed, s). Leaves out: more than one machine.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from capo_ray.config import Trainer
from capo_ray.types import TrainSequence

if TYPE_CHECKING:
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

Conversation = list[dict[str, str]]


class Sft(BaseModel):
    """Settings; given as key=value."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="folder or Hugging Face id with weights, or a config.json: random weights")
    tokenizer: str | None = Field(None, description="folder or id; null: the model's own")
    data: str = Field(description="jsonl file of conversations; .gz is read too")
    out: str = Field(description="folder that the trained model is written to")
    epochs: float = Field(1.0, gt=0, description="passes over the data, unless `steps` is set")
    steps: int | None = Field(None, gt=0, description="optimizer steps")
    sequences_per_update: int = Field(32, gt=0, description="conversations per optimizer step, over all ranks")
    tokens_per_micro_batch: int = Field(4096, gt=0, description="tokens, padding included, in one forward pass")
    max_tokens: int | None = Field(None, gt=1, description="longer conversations are dropped; null: the model's window")
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    final_lr_share: float = Field(0.0, ge=0, le=1, description="share of the rate left when the cosine ends")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 0
    ranks: int = Field(1, ge=1, description="processes on this machine")
    device: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0)
    evaluation_share: float = Field(0.0, ge=0, lt=1, description="share of the conversations held out")
    report_every: int = Field(20, gt=0, description="steps between progress lines")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints in OUT/checkpoint; 0: none")
    resume: bool = Field(False, description="continue from OUT/checkpoint")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.endswith(".json") and self.tokenizer is None:
            raise ValueError("`tokenizer` must be set when `model` is a config: there is no tokenizer beside it")
        return self

    def trainer(self) -> Trainer:
        shared = set(Trainer.model_fields) & set(type(self).model_fields)
        return Trainer(**{name: getattr(self, name) for name in shared})


def parse(arguments: Sequence[str]) -> Sft:
    """Settings from key=value arguments. Raises ValueError with one line per fault."""
    from omegaconf import OmegaConf

    if stray := [argument for argument in arguments if "=" not in argument]:
        raise ValueError(f"arguments are key=value, got {' '.join(stray)}")
    try:
        return Sft.model_validate(OmegaConf.to_container(OmegaConf.from_cli(list(arguments))))
    except ValidationError as error:
        raise ValueError("\n".join(_line(fault) for fault in error.errors())) from None


def _line(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: no such key; the keys are {', '.join(Sft.model_fields)}"
    if fault["type"] == "missing":
        return f"{where}: missing; pass {where}=..."
    if fault["type"] == "value_error":
        return str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {fault['msg']}, got {fault['input']!r}"


def read(path: Path) -> Iterator[Conversation]:
    """The conversations of a file, each cut after the assistant's last turn. Raises ValueError naming the line."""
    if not path.is_file():
        raise ValueError(f"there is no data file {path}")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _conversation(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None


def _conversation(line: str) -> Conversation:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise ValueError('must be {"messages": [{"role": ..., "content": ...}, ...]} with strings')
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise ValueError("no assistant message, so nothing to learn")
    return messages[: last + 1]


def pieces(conversation: Conversation, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a conversation, cut where an assistant's turn starts and ends; True where it carries loss."""
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    result, done = [], 0
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(conversation[:index], tokenize=False, add_generation_prompt=True)
        until = tokenizer.apply_chat_template(conversation[: index + 1], tokenize=False).rstrip()
        if not whole.startswith(before) or not whole.startswith(until):
            raise ValueError(
                f"the chat template renders turn {index} differently when more follows, so that what the model is "
                "sampled after is not what it would be trained on; cut conversations after one assistant turn"
            )
        result += [(whole[done : len(before)], False), (whole[len(before) : len(until)], True)]
        done = len(until)
    return result


def encode(conversations: Sequence[Conversation], tokenizer: Any) -> list[TrainSequence]:
    cut = [pieces(conversation, tokenizer) for conversation in conversations]
    texts = [text for turns in cut for text, _ in turns]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    return [_sequence([(next(ids), taught) for _, taught in turns]) for turns in cut]


def _sequence(turns: Sequence[tuple[list[int], bool]]) -> TrainSequence:
    (prompt, _), *rest = turns
    tokens = tuple(token for ids, _ in rest for token in ids)
    mask = tuple(taught for ids, taught in rest for _ in ids)
    zeros = (0.0,) * len(tokens)
    return TrainSequence(
        prompt_ids=tuple(prompt),
        token_ids=tokens,
        advantages=zeros,
        logprobs=zeros,
        loss_mask=() if all(mask) else mask,
    )


def length(sequence: TrainSequence) -> int:
    return len(sequence.prompt_ids) + len(sequence.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    training: list[TrainSequence]
    held_out: list[TrainSequence]
    num_dropped: int


def prepare(config: Sft) -> Examples:
    """Read, check and tokenise everything once."""
    from transformers import AutoConfig, AutoTokenizer

    conversations = list(read(Path(config.data)))
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or config.model)
    shape = AutoConfig.from_pretrained(config.model)
    if len(tokenizer) > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries, too many for the model's vocabulary of {shape.vocab_size}"
        )
    sequences = encode(conversations, tokenizer)
    longest = min(config.max_tokens or shape.max_position_embeddings, config.tokens_per_micro_batch)
    kept = [sequence for sequence in sequences if length(sequence) <= longest]
    if not kept:
        raise ValueError(f"none of the {len(sequences)} conversations in {config.data} fits {longest} tokens")
    random.Random(config.seed).shuffle(kept)
    num_held_out = round(config.evaluation_share * len(kept))
    return Examples(training=kept[num_held_out:], held_out=kept[:num_held_out], num_dropped=len(sequences) - len(kept))


def of_step(step: int, count: int, per_update: int, seed: int) -> list[int]:
    """Indices that optimizer step `step` learns from: epochs, each in an order of its own, cut one after the other."""
    positions = range(step * per_update, (step + 1) * per_update)
    return [_order(position // count, count, seed)[position % count] for position in positions]


@lru_cache(maxsize=2)
def _order(epoch: int, count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def train(config: Sft, examples: Examples, rank: int, device: Literal["cpu", "gpu"]) -> None:
    """One rank, from the first step to the last."""
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine

    count = len(examples.training)
    steps = config.steps or math.ceil(config.epochs * count / config.sequences_per_update)
    engine = DeepSpeedEngine(
        config.model,
        tokenizer=config.tokenizer,
        trainer=config.trainer(),
        algorithm=None,
        total_steps=steps,
        rank=rank,
        world_size=config.ranks,
        device=device,
        dtype=config.dtype,
        seed=config.seed,
    )
    with closing(engine):
        if config.resume:
            engine.restore(str(_checkpoint(config)))
        report = print if rank == 0 else _silent
        report(
            f"{count} conversations to learn from, {len(examples.held_out)} held out, {examples.num_dropped} too long"
        )
        _steps(config, examples.training, engine, steps, report)
        if examples.held_out:
            report(f"held-out loss {engine.evaluate(_batch(config, examples.held_out, rank))['nll']:.4f}")
        engine.save_pretrained(config.out)
        report(f"written to {config.out}")


def _steps(
    config: Sft, training: Sequence[TrainSequence], engine: DeepSpeedEngine, steps: int, report: Callable[..., None]
) -> None:
    since, num_tokens = perf_counter(), 0
    for step in range(engine.step, steps):
        chosen = [training[i] for i in of_step(step, len(training), config.sequences_per_update, config.seed)]
        metrics = engine.update(_batch(config, chosen, engine.rank)).metrics
        num_tokens += sum(length(sequence) for sequence in chosen)
        if (step + 1) % config.report_every == 0 or step + 1 == steps:
            seconds = perf_counter() - since
            report(
                f"step {step + 1}/{steps}  loss {metrics['loss']:.4f}  rate {metrics['learning_rate']:.2e}  "
                f"gradient {metrics['grad_norm']:.2f}  {num_tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
            since, num_tokens = perf_counter(), 0
        if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
            _save(engine, _checkpoint(config))


def _checkpoint(config: Sft) -> Path:
    return Path(config.out) / "checkpoint"


def _silent(*_: object, **__: object) -> None:
    pass


def _batch(config: Sft, sequences: Sequence[TrainSequence], rank: int) -> Any:
    from capo_ray.engines.protocols import UpdateBatch
    from capo_ray.learn.batch import denominators, loss_length, plan, select

    made = plan(
        [length(sequence) for sequence in sequences],
        ranks=config.ranks,
        tokens_per_micro_batch=config.tokens_per_micro_batch,
    )
    counts = [loss_length(sequence) for sequence in sequences]
    return UpdateBatch(
        micro_batches=select(sequences, made[rank]),
        denominators=denominators(counts, made, "token_mean", max_response_tokens=0),
    )


def _save(engine: DeepSpeedEngine, folder: Path) -> None:
    """Written beside, then renamed."""
    beside = folder.with_name(folder.name + ".new")
    engine.save(str(beside))
    if engine.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)


def _spawned(rank: int, config: Sft, examples: Examples, device: Literal["cpu", "gpu"]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    train(config, examples, rank, device)


def run(config: Sft) -> None:
    import torch

    found: Literal["cpu", "gpu"] = "gpu" if torch.cuda.is_available() else "cpu"
    device = found if config.device == "auto" else config.device
    if config.resume and not _checkpoint(config).is_dir():
        raise ValueError(f"nothing to resume: there is no {_checkpoint(config)}")
    examples = prepare(config)
    if config.ranks == 1:
        train(config, examples, 0, device)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.multiprocessing.spawn(_spawned, args=(config, examples, device), nprocs=config.ranks)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        for name, known in Sft.model_fields.items():
            default = "required" if known.is_required() else f"default {known.default}"
            print(f"  {name}: {known.description + '; ' if known.description else ''}{default}")
        return 0 if given else 2
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # before torch is imported: spinning threads of busy processes starve each other
    )
    try:
        run(parse(given))
    except ValueError as error:
        print(f"capo_ray.sft: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
