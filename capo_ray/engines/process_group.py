"""How a trainer rank joins the others: libraries prepared, device chosen, process group made, slow formats named."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

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
        at = {"rank": rank, "world_size": world_size, "timeout": COLLECTIVE}
        dist.init_process_group(backend, store=_store_here(rank, world_size), **at)
    return torch.device("cpu" if device == "cpu" else f"cuda:{local}")


def warn_if_slow(precision: torch.dtype, device: torch.device, rank: int) -> None:
    """The first rank says so where its processor has no bfloat16 of its own, in place of an hour without a word."""
    width = torch.backends.cpu.get_cpu_capability()
    if rank == 0 and device.type == "cpu" and precision == torch.bfloat16 and width in ("NO AVX", "AVX2"):
        log.warning(
            "this processor (%s) reckons in bfloat16 about nine times slower than in float32: set `dtype` of the model "
            "to float32",
            width,
        )


def _store_here(rank: int, world_size: int) -> dist.Store | None:
    """Where the ranks meet when all are on this machine: on 127.0.0.1, since torch's own listens everywhere. None: it
    is torch's own, at MASTER_ADDR."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if host != "127.0.0.1":
        return None
    listening = None
    if rank == 0:
        with socket.create_server((host, port), backlog=128) as server:
            listening = server.detach()
    return dist.TCPStore(host, port, world_size, rank == 0, COLLECTIVE, master_listen_fd=listening)
