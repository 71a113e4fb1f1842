"""What the files of a model's folder say: the decoder that config.json describes, the tensors in its safetensors files.

JSON and headers, and for `check_finite` the numbers; where config.json leaves to transformers what it means (Gemma 3),
transformers is asked. Raises ConfigError that names the file, the field and what to do. Leaves out where a model is
(see `find`), tokenizers (`credit.tokens`) and chat templates (`chat`).
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.fault import ConfigError
from capo_ray.models.chat import kind_of, read_json

_NUMBERS = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")
_OPTIONAL = ("num_key_value_heads", "head_dim")
_LARGEST = 1 << 40
_LAYER = re.compile(r"(.*\b(?:layers|h|blocks))\.(\d+)\..*")
_OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech")
_AGAIN = "get the model's files again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The language model that a config.json describes."""

    vocabulary: int
    """Entries of the embedding, padding included."""
    window: int
    """Tokens."""
    hidden_size: int
    layers: int
    extra_layers: int
    """Whose weights may be there, and of which the model makes no use (they predict further tokens)."""
    key_value_size: int
    """Numbers that one token stores per layer, halved."""


def read_decoder(folder: Path) -> Decoder:
    """Of a model alone, and of one that has other senses around it (`text_config`); `folder` may be the file too."""
    path = folder if folder.suffix == ".json" else folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} cannot be read as a model's configuration: there is none. Name the folder of a whole model"
        )
    spec = read_json(path)
    if not isinstance(spec, dict):
        raise ConfigError(f"{path} must hold an object, and holds {kind_of(spec)}; {_AGAIN}")
    text = spec.get("text_config")
    given = {**spec, **text} if isinstance(text, dict) else spec
    if any(given.get(name) is None for name in _NUMBERS):
        given = {
            **_as_transformers_fills(folder),
            **{name: value for name, value in given.items() if value is not None},
        }
    number = {name: _number(given.get(name), name, path) for name in _NUMBERS}
    heads, hidden = number["num_attention_heads"], number["hidden_size"]
    optional = {name: _number(given[name], name, path) for name in _OPTIONAL if given.get(name) is not None}
    extra = given.get("num_nextn_predict_layers")
    return Decoder(
        vocabulary=number["vocab_size"],
        window=number["max_position_embeddings"],
        hidden_size=hidden,
        layers=number["num_hidden_layers"],
        extra_layers=extra if type(extra) is int else 0,
        key_value_size=optional.get("head_dim", max(1, hidden // heads)) * optional.get("num_key_value_heads", heads),
    )


def _number(value: Any, name: str, path: Path) -> int:
    if type(value) is not int or not 0 < value < _LARGEST:
        said = "it is missing" if value is None else f"it is {json.dumps(value)[:40]}"
        raise ConfigError(
            f"{path}: `{name}` must be a whole number above 0, and {said}: no model can be made of it; {_AGAIN}"
        )
    return value


def _as_transformers_fills(folder: Path) -> dict[str, Any]:
    """What transformers knows of this kind of model; nothing where it is not installed or knows none."""
    try:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except Exception:  # it raises errors of many kinds for files that are odd; what is missing is told by whoever asks
        return {}
    return {name: getattr(config, name, None) for name in (*_NUMBERS, *_OPTIONAL)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    kind: str
    """Of its numbers, in the words of safetensors."""
    shape: list[int]
    begin: int
    end: int
    """Where in the file its bytes begin and end."""


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in the safetensors files of `folder`, from their headers. Raises ConfigError where
    a file is not whole."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor.shape for path in files for name, tensor in _tensors(path).items()}


def _tensors(path: Path) -> dict[str, _Tensor]:
    try:
        there = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= there - 8:
                raise ValueError("it is no safetensors file, or the beginning of one")
            header = json.loads(file.read(size))
        tensors = {
            name: _Tensor(
                kind=str(entry["dtype"]),
                shape=[int(length) for length in entry["shape"]],
                begin=8 + size + int(entry["data_offsets"][0]),
                end=8 + size + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        if (whole := max((tensor.end for tensor in tensors.values()), default=8 + size)) != there:
            raise ValueError(f"it has {there:,} bytes of {whole:,}")
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ConfigError(f"{path} is not whole ({error}): get it again") from error
    return tensors


def count_weights(folder: Path) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def check_weights(folder: Path, decoder: Decoder) -> None:
    """Raises ConfigError unless the safetensors files that are there are whole, all there, and of that decoder: what is
    missing would be made at random, and what is too much left out, with a warning at most."""
    _check_index(folder / "model.safetensors.index.json")
    shapes = tensor_shapes(folder)
    if not shapes and not any(folder.glob("*.bin")):
        raise ConfigError(f"{folder} holds no weights (no *.safetensors): {_AGAIN}")
    layers: dict[str, set[int]] = defaultdict(set)
    for name, shape in shapes.items():
        if _OTHER_SENSES.search(name):
            continue
        if name.endswith("embed_tokens.weight") and shape != [decoder.vocabulary, decoder.hidden_size]:
            raise ConfigError(
                f"{folder}: {name} is {shape}, and config.json says vocab_size {decoder.vocabulary} and hidden_size "
                f"{decoder.hidden_size}: they are of two models; {_AGAIN}"
            )
        if match := _LAYER.fullmatch(name):
            layers[match[1]].add(int(match[2]))
    if not layers:
        return
    there = max(layers.values(), key=len)
    if missing := decoder.layers - sum(layer < decoder.layers for layer in there):
        first = next(layer for layer in range(decoder.layers) if layer not in there)
        which = f"layer {first}" if missing == 1 else f"{missing} of them (the first is layer {first})"
        raise ConfigError(
            f"{folder}: config.json says {decoder.layers} layers, and there are no weights of {which}: a "
            f"download that ended early, or files of two models; {_AGAIN}"
        )
    if len(there) > decoder.layers + decoder.extra_layers:
        raise ConfigError(
            f"{folder}: config.json says {decoder.layers} layers, and there are weights of {len(there)}: files of two "
            f"models; {_AGAIN}"
        )


def _check_index(index: Path) -> None:
    if not index.is_file():
        return
    spec = read_json(index)
    files = spec.get("weight_map") if isinstance(spec, Mapping) else None
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files.values()):
        raise ConfigError(f"{index}: `weight_map` must map tensors to files; {_AGAIN}")
    missing = sorted({name for name in files.values() if not (index.parent / name).is_file()})
    if missing:
        raise ConfigError(
            f"{index} names {missing[0]!r}, which is not there ({len(missing)} of {len(set(files.values()))} files are "
            f"missing): {_AGAIN}"
        )


_EXPONENT = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
"""Kind of number -> numpy's whole numbers of that size, and the bits that are all set where it is not finite."""
_FILES_AT_ONCE, _BYTES_AT_ONCE = 4, 16 << 20


def check_finite(folder: Path) -> None:
    """Raises ConfigError where a number in the safetensors files of `folder` is not finite. Reads each file once,
    several at a time; needs numpy."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        try:
            for _ in pool.map(_check_numbers, sorted(folder.glob("*.safetensors"))):
                pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _check_numbers(path: Path) -> None:
    import numpy as np

    with path.open("rb") as file:
        for name, tensor in _tensors(path).items():
            if tensor.kind not in _EXPONENT:  # whole numbers, of quantized weights for one
                continue
            whole_number, exponent = _EXPONENT[tensor.kind]
            file.seek(tensor.begin)
            for start in range(tensor.begin, tensor.end, _BYTES_AT_ONCE):
                numbers = np.frombuffer(file.read(min(_BYTES_AT_ONCE, tensor.end - start)), whole_number)
                if numbers.size and (numbers & exponent).max() == exponent:
                    raise ConfigError(
                        f"{path.parent}: its tensor {name} holds numbers that are not finite: get it again"
                    )
