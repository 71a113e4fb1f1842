"""What is wrong with a configuration, in words: the field, what it must be, what it is, and the nearest key.

Leaves out finding faults (the models do) and Hydra's grammar (given).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel


class ConfigError(ValueError):
    """The configuration is not one that can run; the message names the field, the value and what to do."""


LONGEST = 80
"""Characters of a value in a message."""
_BEGINNING = r"(?:sk|pk|gsk|hf|nvapi|xai|ghp)[-_]"
SECRET = re.compile(
    rf"\b{_BEGINNING}(?=[\w-]*\d)[\w-]{{6,}}|{_BEGINNING}(?=[A-Za-z]*\d)[A-Za-z0-9]{{16,}}"
    r"|AIza[\w-]{20,}|Bearer\s+\S+|(?<=://)[^/@\s]+(?=@)"
)
"""Keys by the beginnings that services give them, behind another word only where they are long (`=` left out), and what
stands before the @ of an address."""

WORDS: dict[str, str] = {
    "missing": "must be given",
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "string": "must be a text",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must be a block of keys",
    "model": "must be a block of keys",
    "too": "must be a list of another length",
}
"""Beginning of pydantic's type of a fault -> what the field must be."""
COMPARED = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
ALIASES: dict[str, str] = {
    **dict.fromkeys(("lr", "actor_learning_rate"), "trainer.learning_rate"),
    **dict.fromkeys(("train_batch_size", "batch_size", "rollout_batch_size"), "prompts_per_step"),
    **dict.fromkeys(("n", "num_generations", "n_samples_per_prompt", "group_size"), "responses_per_prompt"),
    **dict.fromkeys(("max_steps", "total_steps", "num_steps", "total_training_steps"), "steps"),
    **dict.fromkeys(("num_train_epochs", "total_epochs", "num_epochs", "num_episodes"), "epochs"),
    **dict.fromkeys(
        ("max_new_tokens", "max_tokens", "max_completion_length", "response_length"), "rollout.max_response_tokens"
    ),
    **dict.fromkeys(("max_prompt_length", "prompt_max_len"), "data.max_prompt_tokens"),
    **dict.fromkeys(("kl_coef", "kl_loss_coef", "init_kl_coef", "beta"), "algorithm.kl_weight"),
    **dict.fromkeys(("clip_range", "clip_ratio", "epsilon", "cliprange", "eps_clip"), "algorithm.clip_low"),
    **dict.fromkeys(("ppo_epochs", "num_iterations"), "trainer.optimisation_passes"),
    **dict.fromkeys(("ppo_mini_batch_size", "mini_batch_size"), "trainer.responses_per_update"),
    **dict.fromkeys(("output_dir", "save_path", "default_local_dir"), "run_dir"),
    **dict.fromkeys(("save_steps", "save_freq", "save_interval"), "checkpoint_every"),
    **dict.fromkeys(("eval_steps", "test_freq"), "evaluate_every"),
    **dict.fromkeys(("model", "model_name", "model_name_or_path", "model_path", "pretrain"), "policy.path"),
    **dict.fromkeys(("dataset", "dataset_name", "train_files", "prompt_data"), "data.path"),
    **dict.fromkeys(("grad_clip", "max_norm"), "trainer.max_grad_norm"),
    **dict.fromkeys(("gpu_memory_utilization",), "rollout.gpu_memory_share"),
    **dict.fromkeys(("tensor_parallel_size", "tp"), "rollout.tensor_parallel"),
    **dict.fromkeys(("bsz", "max_num_seqs"), "rollout.max_sequences"),
    **dict.fromkeys(("advantage_estimator", "adv_estimator"), "algorithm.advantage"),
    **dict.fromkeys(("wandb", "report_to"), "tracking.wandb"),
}
"""What other trainers call a setting -> what it is called here."""


def shown(value: Any) -> str:
    """A value in a message: short, on one line, and without what looks like a key."""
    text = SECRET.sub("***", repr(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... ({len(text):,} characters)"


def limited(message: str) -> str:
    """A message of someone else's: on one line, of a length that is read, and without what looks like a key."""
    text = " ".join(SECRET.sub("***", message).split())
    return text if len(text) <= 10 * LONGEST else f"{text[: 9 * LONGEST]} ... ({len(text):,} characters)"


def line(fault: Mapping[str, Any], top: type[BaseModel], place: str = "", see: str = "--help") -> str:
    """One fault of pydantic's, of a block of type `top` that stands at `place`, in one line."""
    parts = [str(part) for part in fault["loc"] if not str(part).endswith("]")]
    path = limited(".".join([*([place] if place else []), *(part[:LONGEST] for part in parts)])) or "configuration"
    kind = fault["type"]
    if kind == "extra_forbidden":
        return f"{path}: no such key; {_nearest(parts, top) or f'see {see} for the keys there are'}"
    if kind in ("value_error", "assertion_error"):
        return f"{path}: {limited(fault['msg'].removeprefix('Value error, '))}"
    if kind == "missing" and parts[-1].isdigit():
        return f"{path.rpartition('.')[0]}: must be a longer list: number {int(parts[-1]) + 1} is missing"
    if kind == "missing":
        return f"{path}: must be given; pass {path}=..."
    given = "" if parts[-1:] == ["api_key_env"] else f", got {shown(fault['input'])}"  # it may be the key itself
    return f"{path}: {_must_be(fault)}{given}"


def _must_be(fault: Mapping[str, Any]) -> str:
    kind, context = fault["type"], fault.get("ctx") or {}
    if kind in COMPARED:
        key, words = COMPARED[kind]
        return f"must be {words} {context[key]:g}"
    if kind == "literal_error":
        return f"must be one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if kind == "string_pattern_mismatch":
        return f"must match the pattern {context['pattern']}"
    return WORDS.get(kind.split("_")[0], fault["msg"])


def _nearest(parts: list[str], top: type[BaseModel]) -> str:
    """`did you mean KEY?` for a key that is not there; nothing where none is near."""
    name, block = parts[-1], ".".join(parts[:-1])
    known = list(keys(top))
    beside = [key for key in known if key.rpartition(".")[0] == block]
    for candidates in (beside, known):
        by_name = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        if near := get_close_matches(name, by_name, n=1, cutoff=0.75 if candidates is beside else 0.9):
            return f"did you mean {by_name[near[0]]}?"
    alias = ALIASES.get(name.casefold(), "")
    if alias not in known:
        alias = next((key for key in known if alias and key.rpartition(".")[2] == alias.rpartition(".")[2]), "")
    return f"did you mean {alias}?" if alias else ""


def keys(block: type[BaseModel], place: str = "") -> Iterator[str]:
    """Dotted keys of a model of settings and of its blocks."""
    for name, field in block.model_fields.items():
        yield f"{place}{name}"
        for inner in inner_blocks(field.annotation):
            yield from keys(inner, f"{place}{name}.")


def blocks(block: type[BaseModel]) -> set[str]:
    """Dotted keys that hold keys, lists of such blocks apart."""
    return {key.rpartition(".")[0] for key in keys(block)} - {"", "critic.others"}


def inner_blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of settings in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif not isinstance(annotation, type):
        for inner in get_args(annotation):
            yield from inner_blocks(inner)
