"""How a trainer rank joins the others: libraries prepared, device chosen, process group made."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

COLLECTIVE = timedelta(minutes=30)
"""A rank that waits longer for its peers fails; rank 0 may be so long in writing a model that others wait for."""


def join(rank: int, world_size: int, device: Literal["cpu", "gpu"]) -> torch.device:
    """Join the process group; says where this rank computes."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}  # DeepSpeed looks at these
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        torch.set_num_threads(1)  # spinning threads of two busy processes starve each other
    else:
        torch.cuda.set_device(local)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's own calls
    if device == "cpu":
        import deepspeed

        # Gloo will do: this one is compiled on first use, under a lock that a killed process leaves for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if device == "cpu" else "nccl"
    if dist.is_initialized():
        pass
    elif world_size == 1 and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=COLLECTIVE)
    return torch.device("cpu" if device == "cpu" else f"cuda:{local}")
