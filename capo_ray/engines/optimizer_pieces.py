"""What a rank's optimizer holds, parameter by parameter, whatever the ZeRO stage: float32 weights and AdamW's moments.

DeepSpeed keeps them whole on every rank (stage 0), or cuts a flat row of all parameters over the ranks (1 and 2), or
each parameter (3). A piece says which part of which parameter a rank has, and is a view of the numbers themselves. So a
checkpoint of pieces can be read by any number of ranks at any stage (trainer_files). Leaves out files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""Of numbers: the float32 weight, and its moments by AdamW's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    parameter: str
    """Its name as in the model's folder."""
    start: int
    """Where in the flat parameter it begins."""
    numbers: Mapping[str, Tensor]
    """By kind, [length] each, float32: what is written there moves the optimizer."""

    @property
    def length(self) -> int:
        return self.numbers["weight"].numel()


def pieces_of(engine: Any, learnt: Iterable[tuple[str, Any]]) -> Iterator[Piece]:
    """Those of this rank, of the named parameters that its optimizer moves. Moments that AdamW has not made yet are
    made, of zeros, as it would."""
    find = _found_at[engine.zero_optimization_stage()]
    masters = _masters(engine) if find is _whole else {}
    for name, parameter in learnt:
        yield from find(engine, name, parameter, masters)


def replicated(engine: Any) -> bool:
    """Whether every rank holds the same pieces."""
    return int(engine.zero_optimization_stage()) == 0


def steps_taken(engine: Any) -> int:
    """How often AdamW has moved; it corrects its moments by that."""
    return max((int(state["step"]) for state in engine.basic_optimizer.state.values()), default=0)


def put_back(engine: Any, steps: int) -> None:
    """After numbers were written to the pieces of all ranks: AdamW has moved `steps` times, and the model computes with
    the weights that were written. Collective."""
    for state in engine.basic_optimizer.state.values():
        state["step"].fill_(steps)
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_prologue()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
        optimizer.invalidate_secondary_tensor()
    elif hasattr(optimizer, "update_lp_params"):  # ZeRO 1 and 2
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):  # bfloat16 without ZeRO
        for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                weight.data.copy_(master.data)


def _views(engine: Any, master: Tensor, start: int, length: int) -> dict[str, Tensor]:
    """`length` numbers of each kind from `start` of a tensor that AdamW moves."""
    state = engine.basic_optimizer.state[master]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
    flat = {"weight": master.data, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    return {kind: numbers.view(-1).narrow(0, start, length) for kind, numbers in flat.items()}


Found = Iterator[Piece]


def _masters(engine: Any) -> dict[int, Tensor]:
    """Parameter (by id) -> what AdamW moves in its place, without ZeRO; itself in float32."""
    inner = engine.optimizer
    weights = [p for group in getattr(inner, "fp16_groups", ()) for p in group]
    masters = [p for group in getattr(inner, "fp32_groups", ()) for p in group]
    return {id(weight): master for weight, master in zip(weights, masters, strict=True)}


def _whole(engine: Any, name: str, parameter: Tensor, masters: Mapping[int, Tensor]) -> Found:
    master = masters.get(id(parameter), parameter)
    yield Piece(parameter=name, start=0, numbers=_views(engine, master, 0, master.numel()))


def _of_a_row(engine: Any, name: str, parameter: Any, _: Mapping[int, Tensor]) -> Found:
    """The part of the parameter that lies in this rank's share of its group's row, if any does."""
    if (mapping := parameter._hp_mapping) is None:
        return
    (row,) = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"]
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    yield Piece(parameter=name, start=here.start, numbers=_views(engine, row, there.start, there.numel))


def _of_a_parameter(engine: Any, name: str, parameter: Any, _: Mapping[int, Tensor]) -> Found:
    """This rank's share of it, without what fills up the last one."""
    optimizer = engine.optimizer
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = length * dist.get_rank(group=parameter.ds_process_group)
    if (length := min(length, parameter.ds_numel - start)) > 0:
        row = optimizer.fp32_partitioned_groups_flat[group]
        yield Piece(parameter=name, start=start, numbers=_views(engine, row, offset, length))


_found_at = (_whole, _of_a_row, _of_a_row, _of_a_parameter)
"""By ZeRO stage."""
