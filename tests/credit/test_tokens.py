"""Ids to text and char_ends, against the tokenizers' own decoders and a slow definition."""

import json
import random
from itertools import accumulate, pairwise

import pytest
from credit_inputs import records, shared
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from capo_ray.credit.thoughts import said
from capo_ray.credit.tokens import TokenTable


def slow_char_ends(chunks: list[bytes]) -> list[int]:
    """The definition, by decoding ever longer heads: character of byte b = the last one that starts at or before b."""
    data = b"".join(chunks)
    text = data.decode("utf-8", errors="replace")
    starts, at = [], 0
    for character in text:
        starts.append(at)
        if character != "\ufffd" or data[at : at + 3] == "\ufffd".encode():
            at += len(character.encode())
            continue
        size = 1  # a broken part: the longest head that one replacement character stands for
        while at + size < len(data) and len(data[at : at + size + 1].decode("utf-8", errors="replace")) == 1:
            size += 1
        at += size
    assert at == len(data)
    return [
        sum(start <= offset for start in starts) - 1 if offset < len(data) else len(text)
        for offset in accumulate(len(chunk) for chunk in chunks)
    ]


UTF8 = st.text(max_size=4).map(lambda text: text.encode("utf-8", errors="replace"))
EDGES = [
    b"\xed\xa0\x80",
    b"\xf4\x90",
    b"\xf0\x9f\x98",
    b"\xe0\x80",
    b"\xc0\xaf",
    b"\xef\xbf\xbd",
    b"\xf5",
    b"\xc3",
    b"\xe2\x82",
]
CHUNKS = st.lists(st.one_of(st.binary(max_size=4), UTF8, st.sampled_from(EDGES)), max_size=12)


@given(CHUNKS)
def test_char_ends_follow_the_definition(chunks: list[bytes]) -> None:
    table = TokenTable(dict(enumerate(chunks)))
    text, ends = table.decode(range(len(chunks)))
    assert text == b"".join(chunks).decode("utf-8", errors="replace")
    assert list(ends) == slow_char_ends(chunks)


@given(st.text(max_size=20), st.data())
def test_well_formed_text_split_anywhere(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", errors="replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunks = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
    decoded, ends = TokenTable(dict(enumerate(chunks))).decode(range(len(chunks)))
    assert decoded == raw.decode()
    assert list(ends) == slow_char_ends(chunks)
    assert ends[-1] == len(decoded) and list(ends) == sorted(ends)


def test_a_token_starts_at_the_character_of_its_first_byte() -> None:
    table = TokenTable({0: b"a\xf0", 1: b"\x9f", 2: b"\x98\x80b", 3: b"c", 5: b""})
    text, ends = table.decode([0, 1, 2, 4, 3, 4, 4])  # 4 is special
    assert text == "a😀bc"
    assert ends == (1, 1, 3, 3, 4, 4, 4)
    assert table.piece(4) is None and table.piece(3) == b"c"


def test_decodes_like_the_tokenizer(real: tuple[str, Tokenizer, TokenTable]) -> None:
    """Random ids: broken UTF-8, special tokens anywhere, ids beyond the vocabulary."""
    _, tokenizer, table = real
    rng = random.Random(0)
    size = tokenizer.get_vocab_size()
    for _ in range(500):
        ids = [rng.randrange(size + 3) for _ in range(rng.randrange(40))]
        text, ends = table.decode(ids)
        assert text == tokenizer.decode(ids)
        assert list(ends) == slow_char_ends([table.piece(token_id) or b"" for token_id in ids])


def test_decodes_model_outputs(real: tuple[str, Tokenizer, TokenTable]) -> None:
    _, tokenizer, table = real
    for record in records("llm_outputs/qwen25math_math_cot_100x8.jsonl.gz", 20):
        response = record["response"] if isinstance(record["response"], str) else record["response"][0]
        encoding = tokenizer.encode(response, add_special_tokens=False)
        text, ends = table.decode(encoding.ids)
        assert text == tokenizer.decode(encoding.ids)
        if text == response and text.isascii():
            assert list(ends) == [end for _, end in encoding.offsets]


@pytest.mark.parametrize(("name", "file"), [("qwen2", "qwen2"), ("gpt2", "gpt-2")])
def test_llamacpp_vectors(name: str, file: str) -> None:
    folder = shared("tokenizers/llamacpp_test_vectors")
    texts = (folder / f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / f"{file}.out").read_text().splitlines()
    table = TokenTable.load(shared(f"tokenizers/{name}"))
    pairs = [(text, [int(token_id) for token_id in line.split()]) for text, line in zip(texts, lines, strict=False)]
    assert len(pairs) >= 46
    assert [text for text, ids in pairs if table.decode(ids)[0] != text] == []


def llama2_style() -> Tokenizer:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁a", "a", "é", "b▁c", "."]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return tokenizer


def test_byte_fallback_decodes_like_the_tokenizer() -> None:
    """A run of byte tokens that is no UTF-8 is one replacement per byte, special tokens inside it or not."""
    tokenizer = llama2_style()
    table = TokenTable.from_tokenizer_json(json.loads(tokenizer.to_str()))
    rng = random.Random(1)
    size = tokenizer.get_vocab_size()
    euro = [3 + byte for byte in "€".encode()]
    for _ in range(3000):
        ids = []
        for _ in range(rng.randrange(8)):
            ids += rng.choice(
                [euro, euro[:2], [3 + 0x20], [rng.randrange(size)], [rng.randrange(259, size)], [2], [size]]
            )
        text, ends = table.decode(ids)
        assert text == tokenizer.decode(ids), ids
        assert list(ends) == sorted(ends) and ends[-1:] in ((), (len(text),))


def test_added_tokens_that_are_not_special_are_text() -> None:
    spec = {
        "model": {"vocab": {"a": 0, "Ġb": 1, "Ã": 2, "©": 3}},
        "added_tokens": [
            {"id": 4, "content": "<think it>", "special": False},
            {"id": 5, "content": "<|end|>", "special": True},
        ],
        "decoder": {"type": "ByteLevel"},
    }
    assert TokenTable.from_tokenizer_json(spec).decode([4, 0, 1, 5, 2, 3, 5]) == (
        "<think it>a bé",
        (10, 11, 13, 13, 13, 14, 14),
    )


def test_special_tokens_that_mark_thoughts_are_text() -> None:
    """What a response says depends on them; those beside them are left out as ever."""
    spec = {
        "model": {"vocab": {"a": 0, "Ġb": 1}},
        "added_tokens": [
            {"id": number, "content": content, "special": True}
            for number, content in enumerate(("[THINK]", "[/THINK]", "</s>", "◁think▷", "<|channel|>"), start=2)
        ],
        "decoder": {"type": "ByteLevel"},
    }
    table = TokenTable.from_tokenizer_json(spec)
    text, ends = table.decode([2, 0, 3, 1, 4])
    assert (text, ends) == ("[THINK]a[/THINK] b", (7, 8, 16, 18, 18))
    assert said(text) == (" b", False)
    assert said(table.decode([5, 0, 4])[0]) == ("", True)
    assert table.decode([6, 0])[0] == "<|channel|>a"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": {"vocab": {"a": 0}}, "decoder": None}, "decoder is missing"),
        ({"model": {"vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}}, "decoder is WordPiece is not supported"),
        ({"model": {"vocab": [["a", -1.0]]}, "decoder": {"type": "Metaspace"}}, "no model.vocab"),
        ({}, "no model.vocab"),
        ({"model": {"vocab": {}}, "decoder": {"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}}, "Regex"),
    ],
)
def test_refuses_other_tokenizers(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTable.from_tokenizer_json(spec)
