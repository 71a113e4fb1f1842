"""Responses per second of `python -m capo_ray.credit` on one core, ids given.

    python benchmarks/credit_cli.py groups=200 tokens=600 tokenizer=FOLDER_OR_FILE

Groups of 16 responses with 4 critiques each, made from a fixed seed; without `tokenizer`, over a byte-level
vocabulary made here. Prints the whole process's time by the clock and on the core, start-up included, and both rates.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from capo_ray.config.block import Block, setting
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.credit.tokens import TokenTable
from capo_ray.program import run_program

WORDS = ["so", "the", "sum", "of", "two", "and", "three", "is", "five", "therefore", "we", "get", "x", "12"]


def write_tokenizer(path: Path) -> None:
    """Letters, digits and every short word as tokens of a byte-level vocabulary."""
    letters = [chr(code) for code in range(0x21, 0x7F)]
    tokens = [*letters, "Ġ", "Ċ", "Ã", "©", ".ĊĊ", "ĊĊ", *(f"Ġ{word}" for word in WORDS)]
    vocab = {token: i for i, token in enumerate(tokens)}
    spec = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "decoder": {"type": "ByteLevel"}}
    path.write_text(json.dumps(spec), encoding="utf-8")


def write_groups(path: Path, table: TokenTable, num_groups: int, num_tokens: int) -> None:
    rng = random.Random(0)
    ids = [token_id for token_id in range(5000) if "\ufffd" not in table.decode([token_id])[0]]
    blank = next(token_id for token_id in range(200_000) if table.piece(token_id) == b".\n\n")
    with path.open("w", encoding="utf-8") as file:
        for g in range(num_groups):
            responses = []
            for _ in range(16):
                sampled = [blank if rng.random() < 0.02 else rng.choice(ids) for _ in range(num_tokens)]
                wrong = [str(step) for step in range(8) if rng.random() < 0.3]
                reply = f"No. {'Because of this. ' * 40}\n<incorrect_steps>{', '.join(wrong)}</incorrect_steps>"
                responses.append({"token_ids": sampled, "outcome": rng.randrange(2), "critiques": [reply] * 4})
            file.write(json.dumps({"id": g, "responses": responses}) + "\n")


class Settings(Block):
    """Of this program."""

    groups: int = setting("groups of 16 responses", 200, ge=1)
    tokens: int = setting("tokens per response", 600, ge=1)
    tokenizer: AnyPath | None = setting("file or folder; null: a vocabulary made here", None)


def work(arguments: list[str]) -> int:
    args = read_own(Settings, arguments)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = args.tokenizer or Path(folder, "tokenizer.json")
        if args.tokenizer is None:
            write_tokenizer(tokenizer)
        groups, out = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write_groups(groups, TokenTable.load(tokenizer), args.groups, args.tokens)
        start = time.perf_counter()
        with groups.open("rb") as source, out.open("wb") as sink:
            command = [sys.executable, "-m", "capo_ray.credit", f"tokenizer={tokenizer}"]
            subprocess.run(command, stdin=source, stdout=sink, check=True)
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        core_seconds = usage.ru_utime + usage.ru_stime
        with out.open("rb") as file:
            num_responses = sum(1 for _ in file)
    print(f"{num_responses} responses of {args.tokens} tokens")
    for what, spent in (("by the clock", seconds), ("on the core", core_seconds)):
        print(f"{what}: {spent:.2f} s, {num_responses / spent:.0f} responses/s")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(work, None, __doc__ or "", settings=lambda: listing(Settings), bare=True))
