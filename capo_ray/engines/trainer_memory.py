"""What a trainer rank holds between two updates, whatever the ZeRO stage, and how it leaves its GPU for a while.

Tensors are found by walking from the model and DeepSpeed's optimizer through what they hold: DeepSpeed keeps weights,
gradients and the optimizer's state in other places at each stage, and has no list of them. Leaves out where they go
(shelf).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from capo_ray.engines.shelf import Shelf


class TrainerMemory:
    """Of one rank."""

    def __init__(self, *holders: Any, device: torch.device) -> None:
        self._holders = holders
        self._device = device.type
        self._shelf = Shelf()
        self._aside = False

    def put_aside(self) -> None:
        """Nothing on the GPU is left but what libraries keep for themselves."""
        if not self._aside:
            self._shelf.put(tensors_of(*self._holders, device=self._device))
            self._aside = True

    def take_back(self) -> None:
        """Raises WeightsChanged."""
        if self._aside:
            self._aside = False
            self._shelf.back()


def tensors_of(*things: Any, device: str) -> Iterator[Tensor]:
    """Of the kind `device`, each once; views of one storage are several."""
    seen: set[int] = set()
    open_ = deque(things)
    while open_:
        thing = open_.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and thing.device.type == device and thing.layout == torch.strided:
            yield thing
        open_.extend(_held_by(thing))


def _held_by(thing: Any) -> Iterator[Any]:
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    elif isinstance(thing, Tensor):
        yield from vars(thing).values()  # ZeRO hangs its shares and their places on parameters
        if thing.is_leaf and thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, torch.nn.Module | torch.optim.Optimizer) or _is_deepspeeds(thing):
        yield from vars(thing).values()


def _is_deepspeeds(thing: Any) -> bool:
    return type(thing).__module__.startswith("deepspeed.") and hasattr(thing, "__dict__")
