"""Spans tile the response, and every token lies in the one step that holds its first character."""

import random
import re
from typing import Any

import pytest
from credit_inputs import records
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.credit.steps import BLANK_LINE, LINE, delimiter, segment, steps_of
from capo_ray.credit.tokens import TokenTable
from capo_ray.types import Step


def shown(text: str, between: re.Pattern[str] = BLANK_LINE) -> list[str]:
    return [text[s.start : s.shown_end] for s in segment(text, between)]


def spans(text: str, between: re.Pattern[str] = BLANK_LINE) -> list[tuple[int, int]]:
    return [(s.start, s.end) for s in segment(text, between)]


@pytest.mark.parametrize(
    ("text", "expected", "ends"),
    [
        ("", [""], [0]),
        ("one", ["one"], [3]),
        ("a\n\nb", ["a", "b"], [3, 4]),
        ("a\n\nb\n\n", ["a", "b"], [3, 6]),
        ("a\n\n\n\nb", ["a", "b"], [5, 6]),  # an empty segment joins the step before
        ("a\n\n \t\n\nb", ["a", "b"], [7, 8]),
        ("a\n\n\nb", ["a", "\nb"], [3, 5]),  # the delimiter is two line breaks; the third is the next step's
        ("\n\na\n\nb", ["\n\na", "b"], [5, 6]),  # leading ones join the first step
        ("\n\n \n\n", [""], [5]),  # white space alone is one step and shows nothing
        ("a\nb\n\nc", ["a\nb", "c"], [5, 6]),
        ("a\n\nb\n\n  ", ["a", "b"], [3, 8]),
        ("é😀\n\nß", ["é😀", "ß"], [4, 5]),
    ],
)
def test_blank_lines(text: str, expected: list[str], ends: list[int]) -> None:
    assert shown(text) == expected
    assert [end for _, end in spans(text)] == ends


def test_other_segmenters() -> None:
    assert shown("a\nb\n\nc\n", LINE) == ["a", "b", "c"]
    assert shown("Step 1: a. Step 2: b", delimiter("regex", r"(?=Step \d)")) == ["Step 1: a. ", "Step 2: b"]
    assert shown("a ### b###c", delimiter("regex", r"\s*###\s*")) == ["a", "b", "c"]
    assert delimiter() is BLANK_LINE and delimiter("line") is LINE


@pytest.mark.parametrize(
    ("kind", "pattern", "message"),
    [("regex", None, "needs a pattern"), ("regex", "(", "no regular expression"), ("line", "x", "goes with")],
)
def test_bad_segmenters(kind: str, pattern: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delimiter(kind, pattern)


PATTERNS = [BLANK_LINE, LINE, *(re.compile(p) for p in (r"\n+", r"(?=a)", r"x*", r"\s+"))]


@given(st.text(alphabet="ax \n\té", max_size=30), st.sampled_from(PATTERNS))
def test_spans_tile_and_no_step_is_blank(text: str, between: re.Pattern[str]) -> None:
    pieces = segment(text, between)
    assert "".join(text[s.start : s.end] for s in pieces) == text
    assert [s.start for s in pieces] == [0, *(s.end for s in pieces[:-1])]
    assert all(s.start <= s.shown_end <= s.end for s in pieces)
    assert len(pieces) == 1 or all(text[s.start : s.shown_end].strip() for s in pieces)


def assert_owned(text: str, char_ends: tuple[int, ...], steps: tuple[Step, ...]) -> None:
    """Each token in the step that holds its first character, by the definition; those without any in none."""
    assert "".join(text[slice(*step.chars)] for step in steps) == text
    starts = [0, *char_ends[:-1]]
    for t, start in enumerate(starts[: len(char_ends)]):
        owners = [s for s, step in enumerate(steps) if step.tokens[0] <= t < step.tokens[1]]
        expected = [s for s, step in enumerate(steps) if step.chars[0] <= start < step.chars[1]]
        assert owners == expected
        assert len(owners) == (start < len(text))


@given(
    st.lists(st.sampled_from([b"a", b".\n", b"\n", b"\n\n", b"b\n\nc\n\nd", b"\xc3", b"\xa9", b"", b" "]), max_size=20)
)
def test_tokens_have_one_owner(chunks: list[bytes]) -> None:
    text, char_ends = TokenTable(dict(enumerate(chunks))).decode(range(len(chunks)))
    assert_owned(text, char_ends, steps_of(text, char_ends))


def test_delimiter_inside_a_token() -> None:
    """`.` and the blank line in one token: it starts in the first step and is that step's."""
    text, char_ends = TokenTable({0: b"a", 1: b".\n\n", 2: b"b"}).decode([0, 1, 2])
    first, second = steps_of(text, char_ends)
    assert (first.text, first.chars, first.tokens) == ("a.", (0, 4), (0, 2))
    assert (second.text, second.chars, second.tokens) == ("b", (4, 5), (2, 3))


def test_special_tokens() -> None:
    """At the end in no step; inside in the step that stands there; alone in none."""
    table = TokenTable({0: b"a\n\n", 1: b"b"})
    text, char_ends = table.decode([9, 0, 9, 1, 9, 9])
    assert [step.tokens for step in steps_of(text, char_ends)] == [(0, 2), (2, 4)]
    assert [step.tokens for step in steps_of(*table.decode([9, 9]))] == [(0, 0)]
    assert [step.tokens for step in steps_of("", ())] == [(0, 0)]


def test_character_across_a_step_boundary() -> None:
    """A token with the last half of a character goes with that character, though the next step follows in it."""
    text, char_ends = TokenTable({0: b"\xf0\x9f", 1: b"\x98\x80\n\nb", 2: b"c"}).decode([0, 1, 2])
    assert text == "😀\n\nbc"
    assert [step.tokens for step in steps_of(text, char_ends)] == [(0, 2), (2, 3)]


def test_processbench(real: tuple[str, Any, TokenTable]) -> None:
    """Real steps joined by blank lines come back; inner ends fall inside a Qwen2 token, never inside a GPT-2 one."""
    name, tokenizer, table = real
    inside = inner = 0
    for record in records("processbench/math.jsonl.gz", 200):
        response = "\n\n".join(record["steps"])
        ids = [*tokenizer.encode(response, add_special_tokens=False).ids, tokenizer.token_to_id("<|endoftext|>")]
        text, char_ends = table.decode(ids)
        if text != response:  # the tokenizer's normaliser changed it
            continue
        steps = steps_of(text, char_ends)
        assert_owned(text, char_ends, steps)
        assert steps[-1].tokens[1] == len(ids) - 1
        if all("\n\n" not in step and step.strip() for step in record["steps"]):
            assert [step.text for step in steps] == [*record["steps"]]
        ends = set(char_ends)
        for step in steps[:-1]:
            inner += 1
            inside += step.chars[0] + len(step.text) not in ends
    assert inner > 500
    assert (inside / inner > 0.95) if name == "qwen2" else (inside == 0)


def test_non_canonical_ids(real: tuple[str, Any, TokenTable]) -> None:
    """Ids cut differently from the tokenizer's own encoding, down to single bytes."""
    _, tokenizer, table = real
    byte_ids = {
        table.piece(token_id): token_id for token_id in range(tokenizer.get_vocab_size()) if table.piece(token_id)
    }
    rng = random.Random(0)
    for record in records("processbench/gsm8k.jsonl.gz", 30):
        data = ("\n\n".join(record["steps"]) + "\n\né😀").encode()
        ids, at = [], 0
        while at < len(data):
            size = rng.choice([n for n in range(1, 6) if data[at : at + n] in byte_ids])
            ids.append(byte_ids[data[at : at + size]])
            at += size
        text, char_ends = table.decode(ids)
        assert text.encode() == data and ids != tokenizer.encode(text).ids
        assert_owned(text, char_ends, steps_of(text, char_ends))


def test_broken_text(real: tuple[str, Any, TokenTable]) -> None:
    _, tokenizer, table = real
    rng = random.Random(2)
    blank = tokenizer.encode("\n\n").ids
    for _ in range(200):
        ids = [
            i
            for _ in range(rng.randrange(20))
            for i in rng.choice([blank, [rng.randrange(tokenizer.get_vocab_size())]])
        ]
        text, char_ends = table.decode(ids)
        assert_owned(text, char_ends, steps_of(text, char_ends))
