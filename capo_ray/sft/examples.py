"""What is learnt from: conversations as tokens, checked once, and which of them each step takes.

Leaves out what of a conversation carries loss (conversations).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from capo_ray.config.fault import ConfigError
from capo_ray.models.files import read_decoder
from capo_ray.models.find import check_adapter, check_fit, check_trained, find_folder, find_model
from capo_ray.sft.conversations import encode, read, tokenizer_of
from capo_ray.sft.settings import Sft, checkpoint_of
from capo_ray.types import TrainSequence


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
        tokenizer = find_folder(str(config.model.tokenizer), "model.tokenizer")
        check_fit(tokenizer, read_decoder(path).vocabulary, "model")
        found = {"path": str(path), "tokenizer": str(tokenizer)}
    else:
        files = find_model(config.model, "model", Path(config.out), seed=config.seed)
        found = {"path": str(files.folder), "tokenizer": str(files.tokenizer)}
    check_trained(Path(found["path"]), "model", longest=config.longest_in_a_row, lora=config.lora)
    return config.model_copy(update={"model": config.model.model_copy(update=found)})


def prepare(config: Sft) -> Examples:
    """Read, check and tokenise everything once. The model is one that was `located`, or a random one yet to be made."""
    model = config.model
    if config.resume and model.path != "random" and checkpoint_of(config).is_dir():  # else there is nothing to resume
        check_adapter(checkpoint_of(config), config.lora, Path(model.path), "lora")
    size = model.shape if model.path == "random" and model.shape else read_decoder(Path(model.path))
    tokenizer = tokenizer_of(model)
    found = list(read(config.data, config.messages_field, model.system_prompt))
    sequences = encode([conversation for conversation in found if conversation is not None], tokenizer)
    longest = min(config.max_tokens or size.window, config.tokens_per_micro_batch)
    kept = [sequence for sequence in sequences if sequence.length <= longest]
    if not kept:
        raise ConfigError(f"none of the {len(found)} conversations in {config.data.path} fits {longest} tokens")
    largest = max(max(sequence.prompt_ids + sequence.token_ids) for sequence in kept)
    if largest >= size.vocabulary:
        raise ConfigError(
            f"data.path: {config.data.path} has {tokenizer.decode([largest])!r} in it, a token for which the model has "
            "no embedding; take it out"
        )
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
