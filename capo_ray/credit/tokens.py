"""From sampled token ids to text and to where each token starts in it (docs/algorithm.md section 2).

The map is made from the bytes of the *sampled* ids and never by encoding text again: encode(decode(ids)) need not be
ids. `TokenTable` reads a `tokenizer.json` and knows each id's bytes; `decode` gives what the tokenizer's own decoder
gives with special tokens skipped, and beside it `char_ends`. Special tokens that mark thoughts are text here all the
same, since what a response says depends on them (credit.thoughts). Ids that the tokenizer does not know (models pad
their vocabulary) have no bytes, like other special tokens.

Leaves out: encoding (see `credit.recorded`).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from capo_ray.credit.thoughts import is_mark

_LEADS = bytes(not 0x80 <= byte < 0xC0 for byte in range(256))
_REPLACEMENT = "\ufffd".encode()
_CHARACTER = re.compile(  # one character of bytes.decode(errors="replace"): well-formed, or a maximal broken part
    rb"[\x00-\x7f]"
    rb"|[\xc2-\xdf][\x80-\xbf]?"
    rb"|\xe0(?:[\xa0-\xbf][\x80-\xbf]?)?|\xed(?:[\x80-\x9f][\x80-\xbf]?)?|[\xe1-\xef](?:[\x80-\xbf]{1,2})?"
    rb"|\xf0(?:[\x90-\xbf][\x80-\xbf]{0,2})?|\xf4(?:[\x80-\x8f][\x80-\xbf]{0,2})?|[\xf1-\xf3](?:[\x80-\xbf]{1,3})?"
    rb"|[\x80-\xff]"
)


class TokenTable:
    """The bytes of every token of one vocabulary."""

    def __init__(
        self,
        pieces: Mapping[int, bytes],
        *,
        byte_tokens: Iterable[int] = (),
        strip_left: int = 0,
    ) -> None:
        """`pieces` leaves special tokens out, but marks of thoughts. `byte_tokens` are those that stand for one byte in
        byte-fallback vocabularies; `strip_left` is the number of leading spaces that the decoder takes from a whole
        text."""
        self._pieces = dict(pieces)
        self._byte_tokens = frozenset(byte_tokens)
        self._strip_left = strip_left

    @classmethod
    def from_tokenizer_json(cls, spec: Mapping[str, Any]) -> TokenTable:
        """Read a parsed `tokenizer.json`. Raises ValueError unless it is sound, and byte-level or metaspace with byte
        fallback."""
        tokens = _tokens(spec)
        decoders = _decoders(spec)
        kinds = [decoder["type"] for decoder in decoders]
        if kinds == ["ByteLevel"]:
            return cls({token_id: _byte_level(token) for token_id, token in tokens.items()})
        unknown = set(kinds) - {"Replace", "ByteFallback", "Fuse", "Strip"}
        if unknown or not kinds or "ByteLevel" in kinds:
            raise ValueError(
                f"a tokenizer whose decoder is {' + '.join(kinds) or 'missing'} is not supported: "
                "its tokens must be byte-level (GPT-2, Qwen2, Llama-3) or metaspace with byte fallback (Llama-2)"
            )
        return _fallback_table(cls, tokens, decoders)

    @classmethod
    def load(cls, path: str | Path) -> TokenTable:
        """Read `tokenizer.json`, plain or gzipped, or a folder that holds it. Raises OSError, or ValueError that names
        the file."""
        return read_tokenizer(path)[1]

    def piece(self, token_id: int) -> bytes | None:
        """Bytes of one token; None for special and unknown ones."""
        return self._pieces.get(token_id)

    def decode(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Text of `token_ids` and, per token, the code point index at which the next token starts.

        A token starts at the character that its first byte belongs to; bytes that are no UTF-8 are the replacement
        characters they decode to. Tokens without bytes start where the next byte does, at the end at len(text).
        """
        chunks = [self._pieces.get(token_id, b"") for token_id in token_ids]
        if self._byte_tokens:
            self._mend_byte_runs(chunks, token_ids)
        if self._strip_left:
            _strip_left(chunks, self._strip_left)
        data = b"".join(chunks)
        if data.isascii():
            return data.decode("ascii"), tuple(accumulate(map(len, chunks)))
        try:
            return data.decode("utf-8"), _char_ends(data, chunks)
        except UnicodeDecodeError:
            return data.decode("utf-8", errors="replace"), _broken_char_ends(data, chunks)

    def _mend_byte_runs(self, chunks: list[bytes], token_ids: Sequence[int]) -> None:
        """Byte fallback decodes a run of byte tokens as a whole: one that is no UTF-8 is one replacement per byte.

        Special and unknown tokens are left out before the run is looked at, so they do not end it.
        """
        run: list[int] = []
        for t in range(len(chunks) + 1):
            if t < len(chunks) and token_ids[t] in self._byte_tokens:
                run.append(t)
            elif run and (t == len(chunks) or token_ids[t] in self._pieces):
                try:
                    b"".join(chunks[i] for i in run).decode("utf-8")
                except UnicodeDecodeError:
                    for i in run:
                        chunks[i] = _REPLACEMENT
                run = []


def read_tokenizer(path: str | Path) -> tuple[str, TokenTable]:
    """The text of `tokenizer.json`, plain or gzipped, and its table; `path` is the file or its folder. Raises OSError,
    or ValueError that names the file."""
    text, spec = read_tokenizer_json(path)
    try:
        return text, TokenTable.from_tokenizer_json(spec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tokenizer_json(path: str | Path) -> tuple[str, Mapping[str, Any]]:
    """The text of `tokenizer.json`, plain or gzipped, and what it says; `path` is the file or its folder. Raises
    OSError, or ValueError that names the file."""
    path = Path(path)
    if path.is_dir():
        found = [file for file in (path / "tokenizer.json", path / "tokenizer.json.gz") if file.is_file()]
        if not found:
            raise FileNotFoundError(f"no tokenizer.json in {path}")
        path = found[0]
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
        spec = json.loads(text)
    except (ValueError, EOFError, OSError, zlib.error, RecursionError) as error:
        raise ValueError(f"{path} is not a whole tokenizer.json ({error}): get the tokenizer's files again") from error
    if not isinstance(spec, Mapping):
        raise ValueError(f"{path} holds no object: get the tokenizer's files again")
    return text, spec


def vocabulary_of(spec: Mapping[str, Any]) -> tuple[dict[str, int], list[Mapping[str, Any]]]:
    """Token to id of a parsed `tokenizer.json`, those that were added too; and the entries of the added ones. Raises
    ValueError that names the field at fault."""
    model = spec.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocab, Mapping):
        raise ValueError(
            "this tokenizer.json has no model.vocab that maps tokens to ids; BPE vocabularies are supported"
        )
    if not set(map(type, vocab.values())) <= {int} or min(vocab.values(), default=0) < 0:
        raise ValueError("model.vocab must map tokens to integers from 0")
    added = spec.get("added_tokens") or []
    for entry in added if isinstance(added, list) else [added]:
        sound = isinstance(entry, Mapping) and type(entry.get("id")) is int and isinstance(entry.get("content"), str)
        if not sound or entry["id"] < 0:
            raise ValueError(
                f"added_tokens must be a list of objects with id and content, got {json.dumps(entry)[:60]}"
            )
    return dict(vocab) | {entry["content"]: entry["id"] for entry in added}, added


def _char_ends(data: bytes, chunks: Sequence[bytes]) -> tuple[int, ...]:
    """Starts of the next tokens in well-formed `data`: its characters are counted by their leading bytes."""
    characters = list(accumulate(data.translate(_LEADS), initial=-1))[1:]  # per byte, the one it belongs to
    characters.append(characters[-1] + 1)
    return tuple([characters[offset] for offset in accumulate(map(len, chunks))])


def _broken_char_ends(data: bytes, chunks: Sequence[bytes]) -> tuple[int, ...]:
    starts = [match.start() for match in _CHARACTER.finditer(data)]
    offsets = accumulate(map(len, chunks))
    return tuple(bisect_right(starts, offset) - 1 if offset < len(data) else len(starts) for offset in offsets)


def _tokens(spec: Mapping[str, Any]) -> dict[int, str]:
    """Id to token string; special tokens are left out, but marks of thoughts."""
    vocabulary, added = vocabulary_of(spec)
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    special = {entry["content"] for entry in added if entry.get("special") and not is_mark(entry["content"])}
    return {token_id: token for token_id, token in tokens.items() if token not in special}


def _decoders(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    decoder = spec.get("decoder")
    if not decoder:
        return []
    given = decoder.get("decoders") if isinstance(decoder, Mapping) and decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(given, list) or not all(isinstance(one, Mapping) and _is_sound(one) for one in given):
        raise ValueError(
            f"decoder must be an object with a type, and what that type needs, got {json.dumps(decoder)[:60]}"
        )
    return given


def _is_sound(decoder: Mapping[str, Any]) -> bool:
    """Whether it has the fields that are read of it."""
    kind = decoder.get("type")
    if kind == "Replace":
        return isinstance(decoder.get("pattern"), Mapping) and isinstance(decoder.get("content"), str)
    if kind == "Strip":
        numbers = (decoder.get("start"), decoder.get("stop"))
        return isinstance(decoder.get("content"), str) and all(type(number) is int for number in numbers)
    return isinstance(kind, str)


class _ByteAlphabet(dict[int, int]):
    """GPT-2's letters for bytes, as a table for str.translate; what is not in it becomes U+FFFF."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        super().__init__({byte: byte for byte in printable})
        self.update({256 + i: byte for i, byte in enumerate(others)})

    def __missing__(self, key: int) -> int:
        return 0xFFFF


_BYTE_ALPHABET = _ByteAlphabet()


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_BYTE_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # an added token in plain letters
        return token.encode("utf-8")


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _fallback_table(
    cls: type[TokenTable], tokens: Mapping[int, str], decoders: Sequence[Mapping[str, Any]]
) -> TokenTable:
    strip_left, replacements = 0, []
    for decoder in decoders:
        if decoder["type"] == "Replace" and isinstance(decoder["pattern"].get("String"), str):
            replacements.append((decoder["pattern"]["String"], decoder["content"]))
        elif decoder["type"] == "Strip" and decoder["content"] == " " and decoder["stop"] == 0:
            strip_left = decoder["start"]
        elif decoder["type"] in ("Replace", "Strip"):
            raise ValueError(f"a tokenizer with the decoder {json.dumps(decoder)} is not supported")
    fallback = any(decoder["type"] == "ByteFallback" for decoder in decoders)
    pieces, byte_tokens = {}, []
    for token_id, token in tokens.items():
        if fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            pieces[token_id] = bytes.fromhex(match[1])
            byte_tokens.append(token_id)
            continue
        for old, new in replacements:
            token = token.replace(old, new)
        pieces[token_id] = token.encode("utf-8")
    return cls(pieces, byte_tokens=byte_tokens, strip_left=strip_left)


def _strip_left(chunks: list[bytes], most: int) -> None:
    """Take up to `most` leading spaces from the text that `chunks` make."""
    for t, chunk in enumerate(chunks):
        spaces = min(most, len(chunk) - len(chunk.lstrip(b" ")))
        chunks[t] = chunk[spaces:]
        most -= spaces
        if chunks[t] or not most:
            return
