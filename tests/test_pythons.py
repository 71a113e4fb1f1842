"""The core on other Pythons than the one of the locks: an environment with what setup.py asks for, and the pure tests.

Engines are left out: their stack is pinned for one Python.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
OTHERS = [version for version in ("3.11", "3.12", "3.13") if version != f"{sys.version_info[0]}.{sys.version_info[1]}"]
SHIPPED = ("capo_ray", "conf", "docs", "requirements", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")
PURE = ("credit", "test_grade.py", "cluster/test_gate.py", "records/test_tally.py", "training/test_driver.py")
ENGINES = "not engine and not ray and not e2e and not long and not slow"


def interpreter(version: str) -> str:
    """On the path, or pyenv's; a shim that starts nothing is none. Skips where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python3")))]
    for candidate in filter(None, found):
        done = subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False, timeout=60)
        if done.returncode == 0:
            return candidate
    pytest.skip(f"no Python {version}: neither on the path nor in {pyenv}")


def run(*command: str, cwd: Path) -> str:
    """What it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def try_on(version: str, folder: Path) -> None:
    python, checkout = str(folder / "venv" / "bin" / "python"), folder / "checkout"
    run(interpreter(version), "-m", "venv", str(folder / "venv"), cwd=folder)
    checkout.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    run(python, *install, str(checkout), "pytest", "pytest-timeout", "hypothesis", "psutil", cwd=folder)
    shown = run(python, "-m", "capo_ray.launch", "+experiment=llama3b_intersection", "dry_run=true", cwd=folder)
    assert "placement of llama3b_intersection on gpu" in shown
    tests = [f"tests/{name}" for name in PURE]
    passed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", ENGINES, *tests, cwd=checkout)
    assert " passed" in passed and " failed" not in passed


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """On all of them at once: each has one process."""
    with ThreadPoolExecutor() as pool:
        yield {version: pool.submit(try_on, version, tmp_path_factory.mktemp("python")) for version in OTHERS}


@pytest.mark.parametrize("version", OTHERS)
def test_the_core_installs_and_its_tests_pass(version: str, tried: dict[str, Future[None]]) -> None:
    tried[version].result()
