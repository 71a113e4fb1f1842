"""`python -m capo_ray.credit` from outside: fields, choices, bad lines, exit codes."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from credit_inputs import records, shared

ROOT = Path(__file__).resolve().parents[2]


def letters(text: str) -> str:
    return text.replace(" ", "Ġ").replace("\n", "Ċ")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens 0..: a b c d .\\n\\n \\n\\n, then \\xc3 and \\xa9, a blank and <|end|>; byte-level, without merges."""
    vocab = [*"abcd", letters(".\n\n"), letters("\n\n"), "Ã", "©", "Ġ", "<|end|>"]
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 9, "content": "<|end|>", "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocab)}, "merges": []},
    }
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return path


def credit(tokenizer: Path, lines: list[Any], *options: str) -> tuple[list[dict[str, Any]], str, int]:
    """Rows out, standard error and exit code; lines that are no bytes are written as JSON."""
    source = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    command = [sys.executable, "-m", "capo_ray.credit", f"tokenizer={tokenizer}", *options]
    done = subprocess.run(command, input=source, capture_output=True, cwd=ROOT, check=False, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode(), done.returncode


def reply(*wrong: int) -> str:
    return f"Said.\n<incorrect_steps>{', '.join(map(str, wrong))}</incorrect_steps>"


def group(**response: Any) -> dict[str, Any]:
    return {"id": "g", "responses": [{"token_ids": [0, 4, 1, 9], "outcome": 1, "critiques": [reply(1)]} | response]}


# The golden group of docs/algorithm.md section 6: y1 correct, 4 tokens, 2 flagged; y2 wrong, 6 tokens, 3 flagged.
GOLDEN = {
    "id": 7,
    "responses": [
        {"token_ids": [0, 4, 1, 2], "outcome": 1, "critiques": [reply(1)] * 3 + ["garbage"]},
        {"token_ids": [0, 1, 4, 1, 2, 3], "outcome": 0, "critiques": [reply(1)]},
    ],
}


def test_golden_group(tokenizer: Path) -> None:
    rows, err, code = credit(tokenizer, [GOLDEN])
    assert (err, code) == ("", 0)
    first, second = rows
    assert [round(value, 4) for value in first.pop("advantages")] == [1.5455, 1.5455, 0.6364, 0.6364]
    assert [round(value, 4) for value in second.pop("advantages")] == [-0.2727] * 3 + [-1.1818] * 3
    assert first == {
        "id": 7,
        "index": 0,
        "steps": [{"start": 0, "end": 4, "tokens": [0, 2]}, {"start": 4, "end": 6, "tokens": [2, 4]}],
        "valid": 3,
        "invalid": 1,
        "votes": {"1": 3},
        "wrong_steps": [1],
        "token_rewards": [2, 2, 1, 1],
        "kept": True,
    }
    assert (second["index"], second["token_rewards"]) == (1, [0, 0, 0, -1, -1, -1])


def test_choices(tokenizer: Path) -> None:
    rows, _, _ = credit(tokenizer, [GOLDEN], "process_weight=5", "vote=union", "outcome_weight=4")
    assert rows[0]["token_rewards"] == [4, 4, -1, -1]
    rows, _, _ = credit(tokenizer, [GOLDEN], "advantage=grpo")
    assert [row["token_rewards"] for row in rows] == [[2] * 4, [0] * 6]
    assert [[round(a, 4) for a in row["advantages"]] for row in rows] == [[1] * 4, [-1] * 6]
    rows, _, _ = credit(tokenizer, [GOLDEN], "segmenter=regex", "segmenter_pattern=c")
    assert [len(row["steps"]) for row in rows] == [1, 2]


def test_special_tokens_and_broken_characters(tokenizer: Path) -> None:
    rows, _, code = credit(tokenizer, [group(token_ids=[6, 4, 7, 6, 7, 9, 9], critiques=[reply(0)])])
    assert code == 0  # "\ufffd.\n\n\ufffdé": the broken bytes are one character each
    assert rows[0]["steps"] == [{"start": 0, "end": 4, "tokens": [0, 2]}, {"start": 4, "end": 6, "tokens": [2, 5]}]
    assert rows[0]["token_rewards"] == [1, 1, 2, 2, 2, 2, 2]


def test_text_alone_is_encoded_without_special_tokens(tokenizer: Path) -> None:
    rows, err, code = credit(tokenizer, [group(token_ids=None, text="ab\n\ncd") | {"id": None}])
    assert (err, code) == (
        "line 1: response 0: text is not what the tokenizer makes of it and back: from character 2, "
        "'\\n\\ncd' against 'cd'\n",
        1,
    )  # this vocabulary has no token for a lone line break
    assert rows == []


def test_text_and_ids_agree(tokenizer: Path) -> None:
    assert credit(tokenizer, [group(text="a.\n\nb")])[2] == 0
    _, err, code = credit(tokenizer, [group(text="a.\n\nc")])
    assert code == 1 and "text is not what its token_ids decode to: from character 4, 'c' against 'b'" in err


def test_unjudged_responses_say_so(tokenizer: Path) -> None:
    lines = {"id": 1, "responses": [*GOLDEN["responses"], {"token_ids": [0, 9], "outcome": 1, "critiques": ["?"]}]}
    rows, _, code = credit(tokenizer, [lines])
    alone, _, _ = credit(tokenizer, [GOLDEN])
    assert code == 0 and [row["advantages"] for row in rows[:2]] == [row["advantages"] for row in alone]
    unjudged = rows[2]
    assert (unjudged["kept"], unjudged["valid"], unjudged["invalid"], unjudged["wrong_steps"]) == (False, 0, 1, [])
    assert (unjudged["token_rewards"], unjudged["advantages"]) == ([2, 2], [0, 0])
    rows, _, _ = credit(tokenizer, [lines], "unjudged=outcome_only")
    assert [row["token_rewards"] for row in rows] == [[2] * 4, [0] * 6, [2] * 2]


BAD = {
    b"{": "not JSON",
    b"\xff\xfe\xfa": "not JSON",
    b"[" * 100_000: "not JSON",
    b"[]": "must be an object",
    json.dumps({"responses": []}).encode(): "with id and responses",
    json.dumps({"id": 1, "responses": []}).encode(): "at least one response",
    json.dumps({"id": 1, "responses": [3]}).encode(): "response 0: a response must be an object",
    json.dumps(group(token_ids=None)).encode(): "needs text or token_ids",
    json.dumps(group(token_ids=[0, "1"])).encode(): "token_ids must be",
    json.dumps(group(token_ids=[0, -1])).encode(): "token_ids must be",
    json.dumps(group(token_ids=[True])).encode(): "token_ids must be",
    json.dumps(group(text=5)).encode(): "text must be a string",
    json.dumps(group(outcome=2)).encode(): "outcome must be 0 or 1, got 2",
    json.dumps(group(outcome=None)).encode(): "outcome must be 0 or 1, got null",
    json.dumps(group(critiques="No")).encode(): "critiques must be a list",
    json.dumps(group(critiques=[1])).encode(): "critiques must be a list",
    json.dumps(group(token_ids=None, text="\ud800")).encode(): "response 0: ",
}


def test_bad_lines_are_reported_and_skipped(tokenizer: Path) -> None:
    lines = [line for bad in BAD for line in (bad, GOLDEN, b"")]
    rows, err, code = credit(tokenizer, lines)
    assert code == 1 and len(rows) == 2 * len(BAD)
    reported = err.splitlines()
    assert len(reported) == len(BAD)
    for number, (line, message) in enumerate(zip(reported, BAD.values(), strict=True)):
        assert line.startswith(f"line {3 * number + 1}: ") and message in line


def test_greedy_takes_one_critique(tokenizer: Path) -> None:
    rows, err, code = credit(tokenizer, [GOLDEN, group()], "vote=greedy")
    assert (code, [row["id"] for row in rows]) == (1, ["g"])
    assert err == "line 1: the greedy vote takes one critique, got 4\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["segmenter=regex"], "needs a pattern"),
        (["segmenter_pattern=x"], "goes with the segmenter regex"),
        (["vote=most"], "'most' is none of intersection, majority"),
        (["process_weight=nan"], "must be a number from 0 to 1e+15, got 'nan'"),
    ],
)
def test_bad_options(tokenizer: Path, options: list[str], message: str) -> None:
    rows, err, code = credit(tokenizer, [GOLDEN], *options)
    assert (rows, code) == ([], 2) and message in err


def test_bad_tokenizers(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "no tokenizer.json"), (tmp_path / "none", "No such file")):
        rows, err, code = credit(path, [GOLDEN])
        assert (rows, code) == ([], 2) and message in err
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "no model.vocab" in credit(tmp_path, [GOLDEN])[1]


def test_real_text(real: tuple[str, Any, Any], tmp_path: Path) -> None:
    """Real steps, text alone against the tokenizer's own ids and an end-of-sequence token."""
    name, tokenizer, _ = real
    end = tokenizer.token_to_id("<|endoftext|>")
    with_text, with_ids = [], []
    for number, record in enumerate(records("processbench/math.jsonl.gz", 60)):
        text = "\n\n".join(record["steps"])
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.decode(ids) != text:
            continue
        critiques = [reply(record["label"]) if record["label"] >= 0 else reply()] * 2
        shared_fields = {"outcome": int(record["final_answer_correct"]), "critiques": critiques}
        with_text.append({"id": number, "responses": [shared_fields | {"text": text}]})
        with_ids.append({"id": number, "responses": [shared_fields | {"text": text, "token_ids": [*ids, end]}]})
    assert len(with_text) > 50
    folder = shared(f"tokenizers/{name}")
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress((folder / "tokenizer.json.gz").read_bytes()))
    rows, err, code = credit(folder, with_ids)
    assert (err, code) == ("", 0)
    text_rows, err, code = credit(tmp_path, with_text)
    assert (err, code) == ("", 0)
    for row, text_row, line in zip(rows, text_rows, with_ids, strict=True):
        text = line["responses"][0]["text"]
        assert row["steps"] == text_row["steps"] and row["votes"] == text_row["votes"]
        assert [step["start"] for step in row["steps"]] == [0, *(step["end"] for step in row["steps"][:-1])]
        assert row["steps"][-1]["end"] == len(text)
        assert row["steps"][-1]["tokens"][1] == len(row["token_rewards"]) - 1 == len(text_row["token_rewards"])
