"""The images: pinned, small layers, nobody's root; and the steps of the CPU image, run in a virtual environment.

There may be no docker here. hadolint looks at the files where it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("cpu", "gpu")


def steps(image: str) -> list[tuple[str, str]]:
    """(instruction, arguments), without comments, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "docker" / f"Dockerfile.{image}").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(image: str, instruction: str) -> list[str]:
    return [arguments for name, arguments in steps(image) if name == instruction]


@pytest.mark.parametrize("image", IMAGES)
def test_the_base_is_pinned(image: str) -> None:
    (base,) = of(image, "FROM")
    assert re.search(r":\d+\.\d+\.\d+-", base) and "latest" not in base


@pytest.mark.parametrize("image", IMAGES)
def test_it_runs_as_nobody_in_particular(image: str) -> None:
    """A number, so that Kubernetes can see that it is not root."""
    assert of(image, "USER") == ["1000:1000"]
    names = [name for name, _ in steps(image)]
    assert set(names[names.index("USER") :]) <= {"USER", "WORKDIR", "CMD"}


@pytest.mark.parametrize("image", IMAGES)
def test_a_change_of_the_source_installs_no_stack_again(image: str) -> None:
    order = [f"{name} {arguments}" for name, arguments in steps(image)]
    lock = order.index(f"COPY requirements/{image}.lock /tmp/")
    stack = next(n for n, step in enumerate(order) if f"-r /tmp/{image}.lock" in step)
    package = next(n for n, step in enumerate(order) if step.endswith("--no-build-isolation ."))
    sources = [n for n, step in enumerate(order) if step.startswith("COPY") and n != lock]
    assert lock < stack < min(sources) and max(n for n in sources if "launch" not in order[n]) < package


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_is_left_in_a_layer(image: str) -> None:
    for command in of(image, "RUN"):
        for part in command.split("&&"):
            assert "pip install" not in part or {"--no-cache-dir", "--no-deps"} <= set(part.split())
        assert "apt-get" not in command or command.strip().endswith("rm -rf /var/lib/apt/lists/*")
        assert "apt-get install" not in command or "--no-install-recommends" in command


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for arguments in of(image, "COPY"):
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists() and source.rstrip("/") not in ignored


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_has_nothing_to_say(image: str) -> None:
    program = Path(sys.executable).with_name("hadolint")
    file = ROOT / "docker" / f"Dockerfile.{image}"
    done = subprocess.run([str(program), str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_make_something_that_runs(tmp_path: Path) -> None:
    """In a virtual environment, with the files that are copied and no others.

    It sees the packages of this one, so pip finds the lock's all there; with CAPO_CLEAN_INSTALL=1 it sees none and
    installs them (minutes, 4 GB, a network).
    """
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    if os.environ.get("CAPO_CLEAN_INSTALL") != "1":
        (packages,) = venv.glob("lib/python*/site-packages")
        (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    root = tmp_path / "root"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CAPO_TEST_DATA")}
    environment |= {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "WANDB_MODE": "offline"}
    folder = root
    for name, arguments in steps("cpu"):
        if name == "WORKDIR":
            folder = root / arguments.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(arguments.split(), root, folder)
        elif name == "RUN" and "pip install" in arguments:
            command = arguments.replace("/tmp/", f"{root}/tmp/")
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    command = [
        "python",
        "-c",
        "import capo_ray, sys; print(capo_ray.__path__[0]); import capo_ray.doctor.__main__ as d; sys.exit(d.main([]))",
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(str(venv)), "it must be the package that the steps installed"
    assert "packages        all" in done.stdout


def copy(arguments: list[str], root: Path, folder: Path) -> None:
    """As COPY does."""
    *sources, target = arguments
    place = root / target.lstrip("/") if target.startswith("/") else folder / target
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder if target.startswith(".") else place).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
