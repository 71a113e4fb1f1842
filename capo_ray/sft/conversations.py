"""Conversations to imitate: where they come from, and which of their tokens carry loss.

Only what an assistant says carries loss, the token that ends its turn included; the rest is context. A turn is
tokenised apart from what comes before it, as it is when the model is sampled, and ends the text for whoever samples the
trained model. Leaves out training (sft).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from capo_ray.config.blocks import Data
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.data.problem import DataError, Problem
from capo_ray.data.read import problems, rows
from capo_ray.models.chat import check_marks, conversation
from capo_ray.types import JsonDict, TrainSequence

Conversation = list[dict[str, str]]
EXAMPLE: Conversation = [
    {"role": "user", "content": "What is $2 + 3$?"},
    {"role": "assistant", "content": "It is $5$.\n\n\\boxed{5}"},
]


def read(data: Data, messages_field: str | None, system_prompt: str | None) -> Iterator[Conversation | None]:
    """The conversations of a data set, each cut after the assistant's last turn; where `messages_field` is None, each
    problem and its solution, None where it has no solution. Raises DataError at the first row that cannot be used."""
    if messages_field is None:
        for problem in problems(data, limit=data.limit):
            if isinstance(problem, DataError):
                raise problem
            yield _solved(problem, system_prompt)
        return
    for number, (where, _, record) in enumerate(rows(data)):
        if number == data.limit:
            return
        if isinstance(record, DataError):
            raise record
        yield _cut(record, messages_field, where)


def _solved(problem: Problem, system_prompt: str | None) -> Conversation | None:
    if not problem.solution.strip():
        return None
    asked = conversation(problem.question, problem.system or system_prompt)
    return [*asked, {"role": "assistant", "content": problem.solution}]


def _cut(record: JsonDict, field: str, where: str) -> Conversation:
    messages = record.get(field)
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise DataError(
            f'{where}: must be {{"{field}": [{{"role": ..., "content": ...}}, ...]}} with strings; set messages_field, '
            "or messages_field=null to learn from problems and solutions"
        )
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise DataError(f"{where}: no assistant message, so nothing to learn")
    return [{"role": message["role"], "content": message["content"]} for message in messages[: last + 1]]


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
            raise DataError(
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


def tokenizer_of(model: Model) -> Any:
    """The tokenizer as the trained model will have it: with the configuration's chat template, and with the token that
    ends a turn as its end of text. A base model's own end stands after documents; engines would sample past turns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer or model.path)
    if model.chat_template is not None:
        check_marks(model.chat_template, tokenizer.get_vocab(), "model")
        tokenizer.chat_template = model.chat_template
    if tokenizer.chat_template is None:
        raise ConfigError(f"the tokenizer of {model.path} has no chat template; set model.chat_template")
    (example,) = encode([EXAMPLE], tokenizer)
    end = tokenizer.convert_ids_to_tokens(example.token_ids[-1])
    if end in tokenizer.get_added_vocab():
        tokenizer.eos_token = end
    return tokenizer


def write_tokenizer(tokenizer: Any, out: Path) -> None:
    """Beside the model's files, whose own end of text becomes the tokenizer's."""
    tokenizer.save_pretrained(out)
    for path in (out / "config.json", out / "generation_config.json"):
        if path.is_file():
            spec = json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": tokenizer.eos_token_id}
            path.write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
