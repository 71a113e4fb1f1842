"""`python -m capo_ray.sft`: supervised training on conversations, with the engine that the RL trainer uses.

    python -m capo_ray.sft +experiment=qwen7b_sft                     # the paper's, from conf/experiment
    python -m capo_ray.sft model=FOLDER data=FILE.jsonl out=FOLDER learning_rate=1e-5
    python -m capo_ray.sft model=config.json model.tokenizer=FOLDER data=FILE.jsonl out=FOLDER   # from random weights

Learns from conversations, {"messages": [{"role", "content"}, ...]} a row, or with messages_field=null from problems and
their solutions. `model` and `data` alone name the path; they and all they hold are set as in a run's `policy` and
`data`. Which sequences step s learns from is a function of (seed, s). dry_run=true prints the settings, what a rank
needs and an example. Leaves out: more than one machine, and what carries loss (conversations).
"""

from __future__ import annotations

import math
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError, model_validator

from capo_ray.config.blocks import Block, Data, Model, Trainer, setting
from capo_ray.config.fault import line
from capo_ray.config.given import ENDINGS, Given
from capo_ray.config.library import DeepSpeedOptions
from capo_ray.config.listing import listing
from capo_ray.config.own_files import searched
from capo_ray.config.run import ConfigError, composed, conf_dir
from capo_ray.config.sensible import unusual_rate
from capo_ray.config.sources import follow
from capo_ray.conversations import EXAMPLE, encode, length, read, tokenizer_of, write_tokenizer
from capo_ray.durable import replace_folder
from capo_ray.models import find_model, shown
from capo_ray.options import check
from capo_ray.planning.machine import gpu_sizes, shape_of
from capo_ray.planning.memory import rank_memory
from capo_ray.program import need, run_program
from capo_ray.types import TrainSequence

if TYPE_CHECKING:
    from capo_ray.engines.train_deepspeed import DeepSpeedEngine


class Sft(Block):
    """Settings; given as key=value."""

    model: Model = setting("what is trained: weights, or with a config.json as `path` random ones")
    data: Data = setting("what is learnt from")
    messages_field: str | None = setting(
        "column of conversations; null: `data.question_field` and `data.solution_field`",
        "messages",
        source="OpenAI API `messages`",
    )
    out: str = setting("folder that the trained model is written to")
    epochs: float = setting("passes over the data, unless `steps` is set", 1.0, unit="passes", gt=0)
    steps: int | None = setting("optimizer steps", None, unit="optimizer steps", gt=0)
    sequences_per_update: int = setting(
        "conversations per optimizer step, over all ranks", 32, unit="conversations", source="CAPO: 80", gt=0
    )
    tokens_per_micro_batch: int = setting("tokens, padding included, in one forward pass", 4096, unit="tokens", gt=0)
    max_tokens: int | None = setting(
        "longer conversations are dropped; null: the model's window", None, unit="tokens", gt=1
    )
    learning_rate: float = setting("peak rate of AdamW", 1e-5, unit="none", source="torch `AdamW`; CAPO: 1e-5", gt=0)
    schedule: Literal["cosine", "constant"] = setting("of the rate, over all optimizer steps of the run", "cosine")
    warmup_steps: int = setting("of linear warm-up", 0, unit="optimizer steps", ge=0)
    final_lr_share: float = setting("share of the rate left when the cosine ends", 0.0, unit="share", ge=0, le=1)
    weight_decay: float = setting("of AdamW, on matrices alone", 0.0, unit="none", source="torch `AdamW`", ge=0)
    betas: tuple[float, float] = setting("of AdamW", (0.9, 0.999), unit="none", source="torch `AdamW`")
    max_grad_norm: float = setting(
        "the gradient is clipped to this norm", 1.0, unit="none", source="DeepSpeed `gradient_clipping`", gt=0
    )
    zero_stage: Literal[0, 1, 2, 3] = setting(
        "what DeepSpeed shards over the ranks: nothing, optimizer, gradients too, weights too",
        0,
        unit="none",
        source="DeepSpeed `zero_optimization.stage`",
    )
    ranks: int = setting("processes on this machine", 1, unit="processes", source="DeepSpeed", ge=1)
    device: Literal["auto", "cpu", "gpu"] = setting("where it runs; auto: on GPUs where there are any", "auto")
    gradient_checkpointing: bool = setting(
        "recompute activations instead of keeping them; the plan says where there is room without",
        True,
        source="transformers `gradient_checkpointing_enable`",
    )
    deepspeed: DeepSpeedOptions = setting(
        "further options of DeepSpeed, by its names, see [operations.md](operations.md#options-of-the-libraries)",
        {},
        source="DeepSpeed `config`",
    )
    seed: int = setting("every random choice of the run is a function of it", 0, unit="none", ge=0)
    evaluation_share: float = setting("share of the conversations held out", 0.0, unit="share", ge=0, lt=1)
    report_every: int = setting("steps between progress lines", 20, unit="optimizer steps", gt=0)
    checkpoint_every: int = setting(
        "steps between checkpoints in OUT/checkpoint; 0: none", 0, unit="optimizer steps", ge=0
    )
    resume: bool = setting("continue from OUT/checkpoint", False)
    dry_run: bool = setting("print settings, plan and an example, then stop", False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.path.endswith(".json") and self.model.tokenizer is None:
            raise ValueError("`model.tokenizer` must be set when `model` is a config: there is no tokenizer beside it")
        if said := unusual_rate(self.learning_rate):
            warnings.warn(said, stacklevel=2)
        if self.data.kind == "arithmetic":
            raise ValueError(f"`data.kind` {self.data.kind} has no texts to learn from; name some with data=FILE")
        if self.messages_field is None and self.data.solution_field is None:
            raise ValueError("`data.solution_field` must be set when `messages_field` is null: solutions are learnt")
        return self

    def trainer(self) -> Trainer:
        shared = set(Trainer.model_fields) & set(type(self).model_fields)
        return Trainer(**{name: getattr(self, name) for name in shared})


def parse(arguments: Sequence[str]) -> Sft:
    """Settings from `+experiment=NAME` and key=value arguments. Raises ConfigError with one line per fault."""
    from omegaconf import OmegaConf

    experiments = [argument for argument in arguments if argument.lstrip("+").startswith("experiment=")]
    given = [_full(argument) for argument in arguments if argument not in experiments]
    if stray := [argument for argument in given if "=" not in argument or argument.startswith("+")]:
        raise ConfigError(f"arguments are key=value, got {' '.join(stray)}")
    own = [Given.of(argument) for argument in experiments]
    if wrong := [argument for argument in experiments if not argument.endswith(("_sft", *ENDINGS))]:
        raise ConfigError(f"{wrong[0]} is no supervised training: the names of those end in _sft")
    with searched(own) as chosen:
        tree = OmegaConf.create(OmegaConf.to_container(composed(None, chosen)) if chosen else {})
    before = OmegaConf.select(tree, "model.path")
    tree.merge_with(OmegaConf.from_cli(given))
    if path := OmegaConf.select(tree, "model.path"):
        beside = [argument.partition("=")[0].removeprefix("model.").split(".")[0] for argument in given]
        tree.merge_with({"model": follow(before, str(path), beside, conf_dir() / "model")})
    try:
        return Sft.model_validate(OmegaConf.to_container(tree, resolve=True))
    except ValidationError as error:
        raise ConfigError(
            "\n".join(line(fault, Sft, see="python -m capo_ray.sft --help") for fault in error.errors())
        ) from None


def _full(argument: str) -> str:
    """`model` and `data` alone stand for their path."""
    key, mark, value = argument.partition("=")
    return f"{key}.path{mark}{value}" if key in ("model", "data") else argument


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    training: list[TrainSequence]
    held_out: list[TrainSequence]
    num_dropped: int


def located(config: Sft) -> Sft:
    """With the model as a folder of this machine. Raises ConfigError where it is not found or its files do not fit."""
    path = Path(config.model.path).expanduser()
    if path.suffix == ".json":
        if not path.is_file():
            raise ConfigError(f"model.path: there is no model config {path}")
        return config
    files = find_model(config.model, "model", Path(config.out), seed=config.seed)
    found = {"path": str(files.folder), "tokenizer": str(files.tokenizer)}
    return config.model_copy(update={"model": config.model.model_copy(update=found)})


def prepare(config: Sft) -> Examples:
    """Read, check and tokenise everything once."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(config.model.path)
    tokenizer = tokenizer_of(config.model)
    found = list(read(config.data, config.messages_field, config.model.system_prompt))
    conversations = [conversation for conversation in found if conversation is not None]
    if len(tokenizer) > shape.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} entries, too many for the model's vocabulary of {shape.vocab_size}"
        )
    sequences = encode(conversations, tokenizer)
    longest = min(config.max_tokens or shape.max_position_embeddings, config.tokens_per_micro_batch)
    kept = [sequence for sequence in sequences if length(sequence) <= longest]
    if not kept:
        raise ConfigError(f"none of the {len(found)} conversations in {config.data.path} fits {longest} tokens")
    random.Random(config.seed).shuffle(kept)
    num_held_out = round(config.evaluation_share * len(kept))
    return Examples(training=kept[num_held_out:], held_out=kept[:num_held_out], num_dropped=len(found) - len(kept))


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
            engine.restore(str(_checkpoint(config)))
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
    beside = folder.with_name(folder.name + ".new")
    engine.save(str(beside))
    if engine.rank == 0:
        replace_folder(beside, folder)


def _spawned(rank: int, config: Sft, examples: Examples, device: Literal["cpu", "gpu"]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    train(config, examples, rank, device)


def describe(config: Sft) -> str:
    """Settings, what one rank needs, and how an example is rendered; needs no network."""
    import yaml

    needs = _needs(config)[1]
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    system = [{"role": "system", "content": config.model.system_prompt}] if config.model.system_prompt else []
    example = shown([*system, *EXAMPLE], config.model, add_generation_prompt=False)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} passes over {config.data.path}"
    return (
        f"{resolved}\n"
        f"plan: {config.ranks} ranks on one machine, {length}, {config.sequences_per_update} conversations an update\n"
        f"  each rank (estimates): {needs or 'not known here: the model has no shape'}\n"
        f"an example as it is learnt from:\n{example}"
    )


def _needs(config: Sft) -> tuple[float, str]:
    """GiB of one rank on GPU, and in words; 0 and none where the model's shape is not known here."""
    shape = shape_of(config.model)
    if shape is None:
        return 0.0, ""
    parts = rank_memory(config.trainer(), shape, config.model.dtype, reference=False, on_cpu=False)
    total = sum(parts.values())
    return total, f"{total:.1f} GiB = " + " + ".join(f"{name} {gib:.1f}" for name, gib in parts.items())


def refuse_unfit(config: Sft, gpus: Sequence[float]) -> None:
    """Raises ConfigError where a rank would have no GPU, or one of too little memory; `gpus` in GiB each."""
    if config.ranks > len(gpus):
        raise ConfigError(
            f"ranks: {config.ranks} ranks need a GPU each, and this machine has {len(gpus)}; lower ranks, or pass "
            "device=cpu, where small models learn"
        )
    needed, parts = _needs(config)
    room = min(gpus[: config.ranks])
    if needed <= room:
        return
    ways = [f"a tokens_per_micro_batch below {config.tokens_per_micro_batch}"]
    ways += ["gradient_checkpointing=true"] if not config.gradient_checkpointing else []
    ways += [f"a zero_stage above {config.zero_stage}"] if config.zero_stage < 3 else []
    raise ConfigError(
        f"a rank needs about {parts}, and a GPU here has {room:.0f}; pass {', '.join(ways)} or more ranks"
    )


def run(config: Sft) -> None:
    need("torch", "transformers", "deepspeed")
    import torch

    found: Literal["cpu", "gpu"] = "gpu" if torch.cuda.is_available() else "cpu"
    device = found if config.device == "auto" else config.device
    if device == "gpu":
        refuse_unfit(config, gpu_sizes())
    if config.resume and not _checkpoint(config).is_dir():
        raise ConfigError(f"nothing to resume: there is no {_checkpoint(config)}")
    there = [path for path in (Path(config.out) / "config.json", _checkpoint(config)) if path.exists()]
    if there and not config.resume:
        raise ConfigError(
            f"out: {there[0]} is there already, and nothing is written over: name another folder, remove that one, or "
            "pass resume=true to go on from its checkpoint"
        )
    config = located(config)
    examples = prepare(config)
    if config.ranks == 1:
        train(config, examples, 0, device)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.multiprocessing.spawn(_spawned, args=(config, examples, device), nprocs=config.ranks)


def work(arguments: list[str]) -> int:
    # before torch is imported: spinning threads of busy processes starve each other
    os.environ["OMP_NUM_THREADS"] = "1"
    config = parse(arguments)
    check({}, {"deepspeed": (config.zero_stage, config.deepspeed)})
    if config.dry_run:
        print(describe(config))
    else:
        run(config)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(
        work,
        argv,
        __doc__ or "",
        settings=lambda: listing(Sft, "settings, as key=value"),
        failures=(FloatingPointError,),
        afterwards="With checkpoint_every, resume=true goes on from its last checkpoint.",
    )


if __name__ == "__main__":
    sys.exit(main())
