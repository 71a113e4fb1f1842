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

# Room, or module of one -> what of capo_ray it may import, itself apart; imports inside functions and for type checkers
# count. What is not listed is a program or a room that only programs need: it may import anything but a program.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # words that everybody shares
    "types": (),
    "seeds": (),
    "extension": (),
    "arguments": (),
    "leaving": (),
    "program": ("arguments", "config", "data", "files", "leaving"),
    # the method
    "credit": ("extension", "types"),
    "learn": ("extension", "types"),
    "critics": ("credit", "engines.protocols", "seeds", "types"),
    "critics.prompt": ("config", "credit", "types"),
    "critics.labelled": ("credit", "critics", "data", "tasks", "types"),
    "critics.canaries": ("config", "credit", "critics", "data", "records.tally", "seeds", "tasks", "types"),
    # what is given
    "config": ("arguments", "credit", "extension"),
    "models": ("config", "credit", "engines.causal_model", "engines.lora", "engines.random_model"),
    "tasks": ("config", "credit", "engines.protocols", "extension", "records.tally", "types"),
    "data": ("config", "models", "tasks", "types"),
    "planning": ("config", "data", "files", "models"),
    # what is kept
    "files": ("types",),
    "records": ("config", "credit", "extension", "files", "leaving", "types"),
    "records.busy": (),
    "records.estimates": (),
    "records.tally": ("credit", "types"),
    "records.report": ("records.tally", "types"),
    "records.ledger": ("credit", "records.ledger_columns", "records.scheme", "types"),
    # what runs
    "engines": ("config", "credit", "learn", "records.busy", "types"),
    "engines.protocols": ("types",),
    "engines.ports": (),
    "engines.receivers": ("engines.protocols",),
    "cluster": (
        *("config", "credit", "critics", "engines.ports", "engines.protocols", "engines.receivers", "files", "learn"),
        *("planning", "records", "seeds", "types"),
    ),
    "cluster.gate": (),
    "training": (
        *("cluster", "config", "credit", "critics", "data", "engines", "extension", "files", "leaving", "models"),
        *("planning", "program", "records", "tasks", "types"),
    ),
    "training.driver": ("types",),
    "sft": ("config", "data", "engines", "files", "learn", "models", "planning", "types"),
    # what looks on
    "view": ("credit", "learn", "records", "types"),
    "evaluate.suites": ("config", "data", "evaluate.choices", "seeds", "types"),
    "evaluate.choices": ("credit", "tasks", "types"),
}
PROGRAMS_IN_ROOMS = ("tasks.arithmetic.models", "tasks.arithmetic.measure")
"""Programs that stand beside what they are about, as every `__main__` does; they may import as programs do."""
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
    """Full names of what a module imports, inside functions and for type checkers too."""
    tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
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
        "records.report",
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


def test_every_room_is_a_package() -> None:
    """Without an __init__ it is left out of what is installed."""
    assert [
        folder for folder in {path.parent for path in PACKAGE.rglob("*.py")} if not (folder / "__init__.py").exists()
    ] == []


def test_every_init_is_empty() -> None:
    assert [str(path) for path in PACKAGE.rglob("__init__.py") if path.stat().st_size] == []


PROGRAMS = ("launch", "plan", "export", "replay", "grade", "config_docs")
"""On top; the other programs are rooms with a __main__."""


def is_started(target: str) -> bool:
    """Whether that is a module, or of one, that people start; nobody imports these."""
    return any(starts(target, program) for program in PROGRAMS) or ".__main__" in target


def is_program(module: str) -> bool:
    return "." not in module or module.endswith(".__main__") or module in PROGRAMS_IN_ROOMS


@pytest.mark.parametrize("module", modules())
def test_nothing_is_imported_upwards(module: str) -> None:
    layer = None if module.endswith(".__main__") or module in PROGRAMS_IN_ROOMS else layer_of(module)
    for name in imports_of(module):
        library = name.split(".")[0]
        assert library != "benchmarks", f"{module} imports {name}"
        if library in ONLY_IN:
            assert any(starts(module, place) for place in ONLY_IN[library]), f"{module} imports {library}"
        if library != "capo_ray":
            continue
        target = name.removeprefix("capo_ray").removeprefix(".")
        assert not is_started(target), f"{module} imports a program, {target}"
        if layer is None:
            continue
        allowed = (layer, *MAY_IMPORT[layer])
        assert any(starts(target, place) for place in allowed), f"{module} ({layer}) must not import {target}"


def ours(module: str) -> set[str]:
    """Modules of capo_ray that it imports."""
    known = set(modules())
    names = {name.removeprefix("capo_ray.") for name in imports_of(module) if name.startswith("capo_ray.")}
    return {name if name in known else name.rpartition(".")[0] for name in names} & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One of those that are in it, in their order, back to the first; empty where there is none."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for target in sorted(graph.get(node, set())):
                if found := search(target, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := search(node, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_circle_among_modules_nor_among_rooms() -> None:
    """Among modules all count, among rooms all but the programs that stand in them."""
    graph = {module: ours(module) for module in modules()}
    assert circle(graph) == []
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if not is_program(module):
            room = module.split(".")[0]
            rooms.setdefault(room, set()).update({target.split(".")[0] for target in targets} - {room})
    assert circle(rooms) == []


def test_the_top_is_programs_and_shared_words() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_modules_stay_short() -> None:
    """330 lines a module."""
    paths = {module: (PACKAGE / Path(*module.split("."))).with_suffix(".py") for module in modules()}
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in paths.items()}
    assert {module: number for module, number in lines.items() if number > 330} == {}


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
