"""docs/launch.md says what is: files, commands, messages, and in every section what to check."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import CHECKS

from capo_ray.critic_bench import __main__ as critic_bench

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("launch", "capo_ray")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh")
)
PLACES = ("Jobs", "Plain machines", "Slurm", "ray up", "Kubernetes", "Images")
STARTS = re.compile(
    r"(?:PROGRAM=(?P<set>\w+) )?(?:sbatch )?(?:launch/)?"
    r"(?:job\.py submit(?: --program (?P<given>\w+))?|run\.sh|slurm\.sh|capo_ray\.(?P<named>\w+)) (?P<arguments>.*)"
)


def commands() -> list[tuple[str, list[str]]]:
    """(program, arguments) of every command of the page, and of the headers of files, that ends in a run's own."""
    headers = [
        re.sub(r"^# ?", "", line)
        for folder in ("launch", "docker")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("#  ", "    python launch/job.py"))
    ]
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found = []
    for line in "\n".join([*blocks, *headers]).replace("\\\n", " ").splitlines():
        if started := STARTS.search(re.sub(r"\s+#.*", "", line)):
            program = started["set"] or started["given"] or started["named"] or "launch"
            given = [part for part in shlex.split(started["arguments"].replace("[key=value ...]", "")) if "=" in part]
            found.append((program, [part for part in given if not part.startswith("--")]))
    return found


def test_there_are_commands() -> None:
    assert len(commands()) >= 20
    assert {program for program, _ in commands()} == {"launch", "evaluate", "sft", "critic_bench", "doctor"}


def test_a_bench_that_asks_for_gpus_uses_them() -> None:
    (bench,) = (arguments for program, arguments in commands() if program == "critic_bench")
    assert critic_bench.configuration(critic_bench.options_of(bench)).cluster.device == "gpu"


@pytest.mark.parametrize(("program", "arguments"), commands(), ids=str)
def test_commands_are_sound(program: str, arguments: list[str]) -> None:
    if arguments:
        CHECKS[program](arguments)


def test_files_exist() -> None:
    named = set(re.findall(r"(?:launch|docker|requirements)/[\w./]+\w", PAGE))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("place", PLACES)
def test_every_place_ends_in_what_to_check(place: str) -> None:
    section = PAGE.split(f"\n## {place}\n")[1].split("\n## ")[0]
    checks = section.split("What to check when it does not start:\n")[1]
    assert len(re.findall(r"^\* ", checks, re.MULTILINE)) >= 3
    assert not re.search(r"^\w", checks, re.MULTILINE), "the checks come last"


@pytest.mark.parametrize(
    "message",
    [
        "no Ray dashboard answers",
        "nothing listens at",
        "Ray ended before the run",
        "this is started with sbatch",
        "nodes joined",
        "this run needs",
        "asks for its token",
    ],
)
def test_messages_are_real(message: str) -> None:
    assert message in PAGE and message in SOURCES
