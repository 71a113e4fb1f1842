"""Of every page that starts something at least one command, run whole and small, on one run that they share.

Each is found on its page as it is printed, so page and test cannot drift; what it is run with beside that is here. The
tutorial runs whole in `test_tutorial`, and `test_docs` reads every command of every page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest
from running import steps_in
from view_server import serving

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.e2e, pytest.mark.timeout(900)]

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILE = re.compile(r"`(my_\w+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    "prompts_per_step=4 responses_per_prompt=4 trainer.responses_per_update=8 data.evaluation_prompts=8 "
    "tracking.wandb=off checkpoint_every=1"
)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A command of a page, and what is to be seen."""

    page: str
    command: str
    seen: str
    """A pattern of its output."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """What stands for the reader's own names and for large numbers."""
    more: str = ""
    made: str = ""
    """A file that is there afterwards."""
    quiet: bool = False
    """Whether libraries have nothing to say."""

    @property
    def small(self) -> list[str]:
        words = self.command.split()
        assert set(self.instead) <= set(words), "what is replaced stands in the command"
        return [self.instead.get(word, word) for word in words] + self.more.split()


COMMANDS = (
    Printed(
        page="monitoring",
        command="python -m capo_ray.launch +experiment=tiny_cpu -v",
        more=f"run_dir=out steps=2 {SMALL}",
        seen=r"(?s)step 2/2 .*\n  rollout-0 +[\d.]+k? +[\d.]+%",
        made="out/config.yaml",
    ),
    Printed(
        page="run_directory",
        command="python -m capo_ray.export RUN_DIR",
        instead={"RUN_DIR": "out"},
        seen="out/exports/step_000002",
        made="out/exports/step_000002/model.safetensors",
    ),
    Printed(
        page="evaluation",
        command="python -m capo_ray.evaluate model=FOLDER suite=problems.jsonl",
        instead={"model=FOLDER": "model=out/policy"},
        more="out=scores",
        seen=r"problems",
        made="scores/results.json",
    ),
    Printed(
        page="credit",
        command="python -m capo_ray.revote out vote=majority",
        seen=r"verdicts changed",
    ),
    Printed(
        page="extending",
        command="python -m capo_ray.revote runs/tiny_cpu-TIME vote=my_vote:two_thirds",
        instead={"runs/tiny_cpu-TIME": "out"},
        seen=r"verdicts changed",
    ),
    Printed(
        page="extending",
        command="python -m capo_ray.launch +experiment=tiny_cpu critic=own critic.kind=my_critic:Sums",
        more="dry_run=true",
        seen="this run can start",
    ),
    Printed(
        page="critics",
        command="python -m capo_ray.launch +experiment=tiny_cpu critic.template=deutsch.jinja dry_run=true",
        seen="Du prüfst Lösungen",
    ),
    Printed(
        page="critics",
        command="python -m capo_ray.critic_bench critic=tiny data=arithmetic count=500 k=8 out=bench-tiny",
        instead={"count=500": "count=20", "k=8": "k=2"},
        seen="F1",
        made="bench-tiny/bench.json",
        quiet=True,
    ),
    Printed(
        page="critics",
        command="python -m capo_ray.critic_bench replay=bench",
        instead={"replay=bench": "replay=bench-tiny"},
        seen="F1",
    ),
    Printed(
        page="data",
        command="python -m capo_ray.launch +experiment=llama3b_intersection data=plain data.path=problems.csv",
        more="dry_run=true",
        seen="placement of",
    ),
    Printed(page="launch", command="python -m capo_ray.doctor", seen=r"ok +packages"),
    Printed(
        page="gpu",
        command="python -m capo_ray.launch +experiment=llama1b_grpo dry_run=true",
        seen="placement of",
    ),
    Printed(
        page="experiments",
        command="python -m capo_ray.plan +experiment=llama3b_intersection gpu=h200 gpus=16",
        seen="a step  ",
    ),
)


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def printed(page: str) -> list[str]:
    """The commands of a page as they are typed: without prompts, comments and continuations."""
    lines = text(page).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s#.*", "", line).removeprefix("$ ").split()) for line in lines]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages have a reader write."""
    folder = tmp_path_factory.mktemp("pages")
    for name, code in FILE.findall(text("extending")):
        (folder / name).write_text(code)
    (template,) = re.findall(r"^```jinja\n(.*?)^```$", text("critics"), re.MULTILINE | re.DOTALL)
    (folder / "deutsch.jinja").write_text(template)
    problem = {"question": "Start with 40. Add 5, then subtract 2.", "answer": "43"}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (folder / "problems.csv").write_text("question,answer\n1 + 1?,2\n2 + 2?,4\n")
    return folder


def run(words: list[str], here: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable if word == "python" else word for word in words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: f"{one.page}: {one.command[:60]}")
def test_a_command_runs_as_its_page_says(one: Printed, here: Path) -> None:
    assert one.command in printed(one.page)
    done = run(one.small, here)
    assert re.search(one.seen, done.stdout), done.stdout[-3000:]
    loud = [line for line in done.stderr.splitlines() if "Triton" in line or "vllm" in line]
    assert not (one.quiet and loud), loud
    assert not one.made or (here / one.made).is_file()


def test_the_bench_of_critics_is_whole(here: Path) -> None:
    """What the command of its page has left, sampled and judged on vLLM."""
    figures = json.loads((here / "bench-tiny" / "scores.json").read_text())
    assert figures["summary"]["responses"] == 20 and figures["summary"]["tokens_per_response"] > 2
    assert {(row["vote"], row["k"]) for row in figures["scores"]} >= {("intersection", 1), ("average", 2)}
    lines = (here / "bench-tiny" / "replies.jsonl").read_text().splitlines()
    assert len({json.loads(line)["item"]["question"] for line in lines}) == 20


def test_the_laboratory(here: Path) -> None:
    assert "make lab-quick" in printed("lab")
    small = f"ARGS=steps=1 arms=grpo out={here / 'lab'} {SMALL}"
    run(["make", "-C", str(DOCS.parent), f"PY={sys.executable}", "lab-quick", small], here)
    assert "right answers alone" in (here / "lab" / "report.md").read_text()


def test_the_viewer(here: Path) -> None:
    assert "python -m capo_ray.view runs/NAME" in printed("view")
    with serving(here / "out") as address, urlopen(address, timeout=60) as answer:
        assert b"training step 2 of 2" in answer.read()
    assert [line["step"] for line in steps_in(here / "out")] == [1, 2]
