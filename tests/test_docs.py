"""The documentation says what is: its links lead somewhere, what it names exists, its generated page is current."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from commands import CHECKS

from capo_ray import config_docs
from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.run import Config
from capo_ray.data import __main__ as data_check
from capo_ray.records.tally import RATES
from capo_ray.types import CritiqueOutcome

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("capo_ray/assets/*/*.md")),
]
CREDIT = ROOT / "docs" / "credit.md"
METRICS = ROOT / "docs" / "metrics.md"
TROUBLE = ROOT / "docs" / "troubleshooting.md"

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROOMS = "|".join(path.name for path in (ROOT / "capo_ray").iterdir() if (path / "__init__.py").is_file())
FILE = re.compile(rf"`((?:capo_ray|{ROOMS}|tests|conf|docs|requirements|benchmarks)/[\w./-]*)`")
MODULE_FILE = re.compile(r"`(\w+\.py)`")
FIELD = re.compile(
    r"`((?:critic|reward|algorithm|trainer|rollout|data|cluster|tracking|policy)\.[a-z_.]+)(?:[=:] ?[\w.]+)?`"
)


def named(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return BLOCK.sub("", text(page))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose(page))}


@named(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert ROOT in target.parents, f"{link} leads out of the repository"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@named(PAGES)
def test_programs_exist(page: Path) -> None:
    for module in re.findall(r"python -m (capo_ray[\w.]*)", text(page)):
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"python -m {module} does not exist"
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{module}.__main__"), f"python -m {module} cannot be run"


@named(PAGES)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"(?:^|`)make ([a-z-]+)", text(page), re.MULTILINE)
    assert set(commands) <= targets


def test_make_alone_lists_its_targets() -> None:
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    listed = re.findall(r"^make ([a-z-]+) ", done.stdout, re.MULTILINE)
    assert "demo" in listed and "test" in listed and not done.stderr
    assert len(done.stdout.splitlines()) < 20, "more than the list: a target was made"


@named(PAGES)
def test_files_that_are_named_exist(page: Path) -> None:
    there = {path.name for path in (ROOT / "capo_ray").rglob("*.py")} | {"setup.py"}
    for name in FILE.findall(prose(page)):
        if not any((base / name).exists() for base in (ROOT, ROOT / "capo_ray")):
            pytest.fail(f"{name} does not exist")
    assert {name for name in MODULE_FILE.findall(prose(page)) if not name.startswith("my_")} <= there


@named(PAGES)
def test_python_blocks_compile(page: Path) -> None:
    for language, block in BLOCK.findall(text(page)):
        if language in ("python", "py"):
            compile(block, str(page), "exec")


@named(PAGES)
def test_fields_exist(page: Path) -> None:
    defined = Config.model_json_schema()["$defs"]
    blocks = {name.lower(): set(spec["properties"]) for name, spec in defined.items()} | {
        "policy": set(defined["Model"]["properties"])
    }
    for name in FIELD.findall(prose(page)):
        block, field, *_ = name.split(".")
        assert field == "py" or field in blocks[block], f"there is no field {name}"


def overrides() -> Iterator[list[str]]:
    """Of every command of the documentation that names an experiment."""
    for page in PAGES:
        commands = (re.sub(r"\s+#.*", "", line) for line in text(page).replace("\\\n", " ").splitlines())
        for line in commands:
            launched = re.search(r"python -m capo_ray\.launch ([^`]*)", line)
            demo = re.search(r'make demo ARGS="([^"]*)"', line)
            if launched and "NAME" not in launched[1] and "=my_" not in launched[1]:  # see test_extension
                yield [part.strip("`'.,;") for part in launched[1].split() if "=" in part]
            elif demo and "..." not in demo[1]:
                yield ["+experiment=tiny_cpu", *demo[1].split()]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(program, arguments) of every command of the documentation that stands in a block, those of `overrides` apart."""
    for page in PAGES:
        for _, block in BLOCK.findall(text(page)):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:\$ )?python -m capo_ray\.(\w+) ([^#<>|]*)", line)
                if found and found[1] in CHECKS and found[1] != "launch" and not re.search(r"\$\w|=my_", found[2]):
                    yield found[1], shlex.split(found[2])  # for the others see test_tutorial and test_extension


SHELL = ("", "bash", "sh", "console")
"""Languages of the blocks that are pasted into a terminal."""
PROGRAM = re.compile(r"python -m |python \w+/|make |pip |launch/")
GLOB = re.compile(r"[\w.]=[^\s'\"]*[\[{?*]|[\w.]\[")
"""Where zsh looks for files and finds none; inside quotes it does not."""


def pasted() -> Iterator[tuple[Path, str]]:
    """(file, command) of shell blocks and of the comments of `conf/`, without what stands in quotes or in a comment."""
    for page in PAGES:
        for block in (block for language, block in BLOCK.findall(text(page)) if language in SHELL):
            yield from ((page, line) for line in block.replace("\\\n", " ").splitlines())
    for file in conf_dir().rglob("*.yaml"):
        yield from ((file, line[1:]) for line in text(file).splitlines() if line.startswith("#"))


def test_commands_can_be_pasted_into_zsh() -> None:
    for file, line in pasted():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", re.sub(r"\s#.*", "", line))
        if PROGRAM.search(bare) or file.suffix == ".yaml":
            assert not GLOB.search(bare), f"{file.name}: quote it, zsh says `no matches found`: {line.strip()}"


@pytest.mark.parametrize(("program", "arguments"), commands(), ids=lambda part: part if isinstance(part, str) else "")
def test_commands_are_sound(
    program: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is that happens to be called the same
    CHECKS[program](arguments)


def test_there_are_commands_of_every_program() -> None:
    assert {program for program, _ in commands()} == CHECKS.keys() - {"launch"}


@pytest.mark.parametrize("command", list(overrides()), ids=" ".join)
def test_commands_compose(command: list[str]) -> None:
    assert compose(command).steps > 0


def test_every_experiment_is_in_its_page() -> None:
    """The paper's by policy and method, each a row of its table; the others by name."""
    page = text(ROOT / "docs" / "experiments.md")
    policies, methods = (
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*)\|", table, re.M)))
        for table in (page.split(f"| {head} |")[1].split("\n\n")[0] for head in ("policy", "method"))
    )
    assert policies and methods
    experiments = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    others = experiments - {f"{policy}_{method}" for policy in policies for method in methods}
    assert len(experiments) - len(others) == len(policies) * len(methods)
    assert all(f"`{name}`" in page for name in others)


def test_the_configuration_page_is_current() -> None:
    assert text(ROOT / "docs" / "configuration.md") == config_docs.page(), (
        "run: python -m capo_ray.config_docs > docs/configuration.md"
    )


def test_every_field_says_what_it_means_where_it_is_from_and_each_number_its_unit() -> None:
    rows = [line for line in config_docs.page().splitlines() if line.startswith("| `")]
    for row in rows:
        field, kind, unit, default, source, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
        assert meaning and source and default, row
        number = re.match(r"\[?(integer|number)", kind)
        assert bool(unit) or not number, f"{field} is a number without a unit"
    assert len(rows) > 150
    assert config_docs.BLOCKS.keys() == Config.model_json_schema()["$defs"].keys() | {"Config"}


def test_metrics_of_the_manual_are_complete() -> None:
    told = set(re.findall(r"`(\w+/\w+|staleness)`", text(METRICS)))
    ended = {f"critic/{outcome}_share" for outcome in get_args(CritiqueOutcome)}
    assert set(RATES) - told == set()
    counted = {name for name in told if name.split("/")[0] in ("truth", "outcome", "reward", "response", "group")}
    of_evaluations = {f"outcome/{name}" for name in ("accuracy_low", "accuracy_high", "pass_at_k")}
    assert counted - {"group/refilled"} - of_evaluations <= set(RATES)
    assert {name for name in told if name.startswith("critic/") and name.endswith("_share")} <= set(RATES) | ended | {
        "critic/OUTCOME_share"
    }


@cache
def strings() -> str:
    """Every string of the package, what is put in between as a blank place."""
    found = []
    for path in (ROOT / "capo_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def messages() -> list[str]:
    """What the manual says that a user will read, of our own."""
    own = "\n".join(line for line in text(TROUBLE).splitlines() if "said by zsh" not in line)
    cells = re.findall(r"^\| (`.*?`) \|", own, re.MULTILINE)
    return [message.strip("` ") for cell in cells for message in re.split(r"(?<=`), (?=`)", cell)]


def longest_part_in(whole: str, message: str) -> str:
    """The longest part of `message` that stands in `whole`."""
    start, best = 0, ""
    for end in range(1, len(message) + 1):
        while message[start:end] not in whole:
            start += 1
        best = max(best, message[start:end], key=len)
    return best


@pytest.mark.parametrize("message", messages())
def test_messages_of_the_manual_are_real(message: str) -> None:
    """Up to what a message is about: names, numbers, and what the manual leaves out."""
    found = longest_part_in(strings(), message)
    assert len(found) >= min(12, len(message) // 3), f"only {found!r} is in the code"


def test_there_are_messages() -> None:
    assert len(messages()) > 80


def test_the_picture_is_whole() -> None:
    tree = ElementTree.parse(ROOT / "docs" / "flow.svg")
    assert tree.find("{http://www.w3.org/2000/svg}title") is not None


def example(start: str) -> str:
    """The block of docs/credit.md that begins with `start`, so that it runs in another folder."""
    (block,) = (block for _, block in BLOCK.findall(text(CREDIT)) if block.startswith(start))
    return block.replace("python -m", f"{sys.executable} -m").replace("capo_ray/assets", f"{ROOT}/capo_ray/assets")


def run_block(block: str, folder: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_credit_example_gives_what_the_page_shows(tmp_path: Path) -> None:
    _, second = run_block(example("cat > groups.jsonl"), tmp_path)
    (shown,) = (block for _, block in BLOCK.findall(text(CREDIT)) if block.startswith('{"id": "q1"'))
    assert second.startswith(" ".join(shown.split('"token_rewards"')[0].split()))
    assert second.count("-1.0") == 6


def test_the_grade_example_gives_what_the_page_shows(tmp_path: Path) -> None:
    block = example('echo \'{"gold"')
    assert run_block(block, tmp_path) == [block.splitlines()[1].removeprefix("# ")]


def test_the_data_page_shows_what_the_check_prints(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tokenizer and the template of Qwen2.5, on MATH."""
    for name, packed in (
        ("math_train.jsonl", "math/math_train.jsonl.gz"),
        ("tokenizer.json", "tokenizers/qwen2/tokenizer.json.gz"),
    ):
        (tmp_path / name).write_bytes(gzip.decompress((test_data / packed).read_bytes()))
    (tmp_path / "math500.jsonl").write_bytes((test_data / "math" / "math500.jsonl").read_bytes())
    (shown,) = (block for _, block in BLOCK.findall(text(ROOT / "docs" / "data.md")) if block.startswith("data "))
    os.chdir(tmp_path)
    (command,) = (arguments for program, arguments in commands() if program == "data")
    arguments = [part.replace("FOLDER", ".") for part in command]
    assert data_check.main([*arguments, "model@policy=qwen2_5_7b", "show=0"]) == 0
    assert capsys.readouterr().out == shown


TEACHES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            *("budgets", "credit", "critics", "data", "evaluation", "experiments", "extending", "gpu", "lab", "launch"),
            *("metrics", "monitoring", "run_directory", "troubleshooting", "tutorial", "view"),
        )
    ),
]
LONGEST_SENTENCE = 40
WIDTH = 120
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\s*\|.*$", re.MULTILINE)


def sentences(page: str) -> list[str]:
    """Of prose: code, tables and headings are left out, a link is its text, an item of a list begins anew."""
    for pattern in (CODE, TABLE, re.compile(r"^#.*$", re.MULTILINE)):
        page = pattern.sub("\n", page)
    page = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", page)
    ends = re.compile(r"(?<=[.!?])\**\s+(?=[A-Z`\"(\[*])")
    return [sentence for paragraph in paragraphs for sentence in ends.split(" ".join(paragraph.split()))]


def test_sentences_are_found() -> None:
    page = "# A title\n\nOne is\nhere. `code` too: [a link](x.md).\n* an item\n\n```bash\nno. This\n```\n| a. B | c |\n"
    assert [one for one in sentences(page) if one] == ["One is here.", "`code` too: a link.", "* an item"]


@named(TEACHES)
def test_pages_that_teach_have_short_sentences(page: Path) -> None:
    assert [one for one in sentences(text(page)) if len(one.split()) > LONGEST_SENTENCE] == []


@named([page for page in PAGES if page.name not in ("configuration.md", "decisions.md", "CHANGELOG.md")])
def test_prose_wraps_at_one_width(page: Path) -> None:
    left = TABLE.sub("", CODE.sub("", text(page))).splitlines()
    wide = [line for line in left if len(line) > WIDTH and len(line.split()) > 1 and not line.startswith("![")]
    assert wide == []
