"""The files of a trainer's checkpoint: every rank writes the pieces that it holds, whoever reads takes what it needs.

    trainer/{trainer.json, model/, pieces_00000_000.safetensors, ..., random_00000.safetensors, ...}

A tensor in a file of pieces is named KIND:START:PARAMETER (optimizer_pieces), so that ranks of another number or ZeRO
stage find theirs in the files of several others, and read no more. Nothing is gathered, and nothing is pickled: a
checkpoint may come from anybody. Leaves out where an optimizer has its pieces, and what trainer.json says
(trainer_state).
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from capo_ray.engines.lora import WEIGHTS as ADAPTER
from capo_ray.engines.optimizer_pieces import KINDS, Piece

PART_BYTES = 1 << 30
"""Of one file, and of memory for it; a larger piece has a file of its own."""


def write_pieces(folder: str, rank: int, pieces: Iterable[Piece], *, part_bytes: int = PART_BYTES) -> list[str]:
    """Names of the files. Raises OSError where the disk takes no more."""
    names: list[str] = []
    part: dict[str, Tensor] = {}
    size = 0

    def end_part() -> None:
        names.append(f"pieces_{rank:05d}_{len(names):03d}.safetensors")
        write_tensors(part, Path(folder) / names[-1])
        part.clear()

    for piece in pieces:
        for kind, numbers in piece.numbers.items():
            if part and size + numbers.nbytes > part_bytes:
                end_part()
                size = 0
            part[f"{kind}:{piece.start}:{piece.parameter}"] = numbers.detach().to("cpu", copy=True)
            size += numbers.nbytes
    if part:
        end_part()
    return names


class Saved:
    """The pieces in a folder, of all ranks that wrote them."""

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        """Raises ValueError where one of `files` is not there, or is no such file."""
        self._folder = folder
        self._open = ExitStack()
        self._places: dict[tuple[str, str], list[tuple[int, int, Any]]] = defaultdict(list)
        for name in files:
            try:
                file = self._open.enter_context(safe_open(Path(folder) / name, framework="pt"))
            except (OSError, SafetensorError) as error:
                self.close()
                raise ValueError(f"the checkpoint {folder} is broken: {name} cannot be read ({error})") from error
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                kind, start, parameter = key.split(":", 2)
                piece = file.get_slice(key)
                self._places[kind, parameter].append((int(start), math.prod(piece.get_shape()), piece))

    def close(self) -> None:
        self._places.clear()
        self._open.close()

    def read(self, kind: str, parameter: str, start: int, length: int) -> Tensor:
        """[length], float32, from `start` of the flat parameter. Raises ValueError where some of it was not written."""
        found = torch.empty(length)
        missing = length
        for begins, has, piece in sorted(self._places[kind, parameter], key=lambda place: place[:2]):
            done = start + length - missing
            first, end = max(begins, done), min(begins + has, start + length)
            if first == done and end > first:
                found[first - start : end - start] = piece[first - begins : end - begins]
                missing -= end - first
        if missing:
            raise ValueError(f"the checkpoint {self._folder} lacks {missing:,} numbers of {kind} of {parameter}")
        return found

    def fill(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            for kind in KINDS:
                piece.numbers[kind].copy_(self.read(kind, piece.parameter, piece.start, piece.length))


def write_random_state(folder: str, rank: int) -> str:
    """Name of the file."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    name = _random(rank)
    write_tensors(state, Path(folder) / name)
    return name


def read_random_state(folder: str, rank: int, *, ranks: int) -> None:
    """That of the same rank of `ranks` that wrote one; there were fewer: of one of them. An adapter's dropout draws
    from it, in supervised training; nothing else does."""
    state = load_file(Path(folder) / _random(rank % ranks))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _random(rank: int) -> str:
    return f"random_{rank:05d}.safetensors"


def write_weights(weights: Mapping[str, Tensor], folder: Path, *, adapter: bool) -> None:
    """As safetensors files: those of a model, or the one of an adapter. Raises OSError where the disk takes no more."""
    from huggingface_hub import save_torch_state_dict

    if adapter:
        write_tensors(weights, folder / ADAPTER)
        return
    with told_as_os_error(str(folder)):
        save_torch_state_dict(dict(weights), folder)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One file, on the disk of whichever machine this is, or of the server behind it. Raises OSError where that takes
    no more."""
    with told_as_os_error(str(path)):
        save_file(dict(tensors), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def told_as_os_error(path: str) -> Iterator[None]:
    """Inside, a full disk, which safetensors tells as an error of its own, is an OSError that names `path`."""
    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), path) from error
