"""Who may import what: the method without engines, `learn` with torch alone, nothing upwards, empty __init__ files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "capo_ray"
ENGINES = (
    "ray",
    "vllm",
    "deepspeed",
    "transformers",
    "tokenizers",
    "math_verify",
    "wandb",
    "datasets",
    "safetensors",
    "pyarrow",
)
NOT_PURE = (*ENGINES, "torch", "numpy", "hydra", "omegaconf", "pydantic", "yaml")

BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Block())
"""

# Module or package -> what of capo_ray it may import, itself apart. What is not listed is a program or `build`: it may
# import anything but another program, and nothing here may import it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "types": (),
    "cluster.gate": (),
    "records.busy": (),
    "seeds": (),
    "extension": (),
    "arguments": (),
    "leaving": (),
    "config": ("arguments", "credit.advantage", "credit.vote", "extension"),
    "engines.protocols": ("types",),
    "engines.receivers": ("engines.protocols",),
    "credit": ("arguments", "extension", "files.output", "types"),
    "cluster.nonfinite": ("files.durable", "engines.protocols", "files.run_dir", "types"),
    "learn": ("credit", "extension", "types"),
    "records.tally": ("credit", "types"),
    "records.ledger": ("credit", "records.ledger_columns", "records.scheme", "types"),
    "records.ledger_columns": ("types",),
    "records.scheme": ("credit", "extension"),
    "critics": ("credit", "engines.protocols", "seeds", "types"),
    "critics.prompt": ("config", "credit", "types"),
    "critics.labelled": ("credit", "critics", "data", "tasks", "types"),
    "critics.canaries": ("config", "credit", "critics", "data", "seeds", "records.tally", "tasks", "types"),
    "training.driver": ("credit", "engines.protocols", "types"),
    "engines": ("records.busy", "config", "credit", "learn", "types"),
    "files.durable": (),
    "files.output": ("files.durable",),
    "files.run_dir": (),
    "files.checkpoint": ("files.durable", "files.run_dir", "types"),
    "records.terminal": ("types",),
    "records.tracking": (
        "files.checkpoint",
        "config",
        "files.durable",
        "files.run_dir",
        "records.terminal",
        "records.sinks",
        "types",
        "records.watch",
    ),
    "records.sinks": ("config", "leaving", "types"),
    "models": ("config", "credit", "engines.random_model"),
    "planning": ("config", "models"),
    "tasks": ("config", "credit", "engines.protocols", "extension", "records.tally", "types"),
    "data": ("config", "models", "tasks", "types"),
    "sft.conversations": ("models", "config", "data", "types"),
    "planning.look": ("config", "data", "models", "files.run_dir"),
    "resumable": ("config", "files.output"),
    "program": ("arguments", "config", "data", "files.output", "files.run_dir", "leaving"),
    "records.estimates": (),
    "evaluate.choices": ("credit", "tasks", "types"),
    "evaluate.suites": ("config", "data", "evaluate.choices", "seeds", "types"),
    "cluster": (
        "records.busy",
        "files.checkpoint",
        "config",
        "credit",
        "critics",
        "files.durable",
        "records.ledger",
        "engines.protocols",
        "engines.receivers",
        "records.estimates",
        "cluster.gate",
        "learn",
        "cluster.nonfinite",
        "planning",
        "seeds",
        "records.tally",
        "records.tracking",
        "types",
    ),
}
PROGRAMS_IN_PACKAGES = ("data.__main__", "tasks.arithmetic.models", "tasks.arithmetic.measure")
"""Programs that stand beside what they are about; they may import as programs do."""
ONLY_IN = {
    "jinja2": ("models.template", "credit.template", "credit.template_check"),
    "ray": ("cluster",),
    "vllm": ("engines",),
    "deepspeed": ("engines",),
}


def modules() -> list[str]:
    """Dotted names below capo_ray."""
    return [
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    ]


def imports_of(module: str) -> Iterator[str]:
    """Full names of what a module imports, inside functions too, those for type checkers apart."""
    tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where they lead"
            name = node.module or ""
            inside = (PACKAGE / Path(*name.split(".")[1:])).is_dir() if name.split(".")[0] == "capo_ray" else False
            yield from (f"{name}.{alias.name}" for alias in node.names) if inside else (name,)


def starts(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def layer_of(module: str) -> str | None:
    """The longest entry of MAY_IMPORT that holds `module`."""
    return max((entry for entry in MAY_IMPORT if starts(module, entry)), key=len, default=None)


def import_blocked(names: tuple[str, ...], modules: list[str]) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(names=names) + "\n".join(f"import capo_ray.{module}" for module in modules)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def of(*prefixes: str) -> list[str]:
    return [module for module in modules() if any(starts(module, prefix) for prefix in prefixes)]


@pytest.mark.parametrize(
    "prefix",
    [
        "credit",
        "critics.service",
        "types",
        "training.driver",
        "cluster.gate",
        "records.tally",
        "seeds",
        "records.ledger",
    ],
)
def test_the_method_imports_without_any_library(prefix: str) -> None:
    """But Jinja, which renders what critics are asked."""
    done = import_blocked(NOT_PURE, of(prefix))
    assert done.returncode == 0, done.stderr


def test_learn_imports_with_torch_alone() -> None:
    done = import_blocked((*ENGINES, "hydra", "omegaconf", "pydantic", "yaml"), of("learn"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "prefix",
    [
        "config",
        "planning",
        "models.chat",
        "data",
        "doctor",
        "grade",
        "tasks.math",
        "tasks.verify",
        "tasks.registry",
        "revote",
        "notebook",
    ],
)
def test_the_core_imports_without_engines(prefix: str) -> None:
    done = import_blocked((*ENGINES, "torch"), of(prefix))
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    done = import_blocked(("tokenizers", "torch"), ["learn.loss"])
    assert done.returncode != 0
    assert "blocked: torch" in done.stderr


def test_every_init_is_empty() -> None:
    assert [str(path) for path in PACKAGE.rglob("__init__.py") if path.stat().st_size] == []


@pytest.mark.parametrize("module", modules())
def test_nothing_is_imported_upwards(module: str) -> None:
    layer = None if module in PROGRAMS_IN_PACKAGES else layer_of(module)
    for name in imports_of(module):
        library = name.split(".")[0]
        if library in ONLY_IN:
            assert any(starts(module, place) for place in ONLY_IN[library]), f"{module} imports {library}"
        if library != "capo_ray":
            continue
        target = name.removeprefix("capo_ray").removeprefix(".")
        if layer is None:
            assert target != "launch", f"{module} imports launch"
            continue
        allowed = (layer, *MAY_IMPORT[layer])
        assert any(starts(target, place) for place in allowed), f"{module} ({layer}) must not import {target}"


def test_functions_stay_short() -> None:
    """60 lines a function."""
    long = []
    for module in modules():
        tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert not long
