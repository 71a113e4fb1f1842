"""docs/tutorial.md, command by command in an empty folder: in the quick tests launches stop at the plan, and a long one
runs the page as it stands, training and viewer too."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest
from running import folder_of, left_behind, steps_in

from capo_ray.config.compose import compose
from capo_ray.credit.critique import wrap
from capo_ray.credit.reply import parse
from capo_ray.data import __main__ as data_check
from capo_ray.engines.ports import free_port
from capo_ray.engines.protocols import CriticEngine
from capo_ray.faults.orphans import Orphans
from capo_ray.launch import launch
from capo_ray.tasks.registry import Task
from capo_ray.types import Prompt, Sampling

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [textwrap.dedent(block) for block in re.findall(r"^ *```bash\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)]
SAY = 'python() { printf "%s\\n" "$*"; }\n'
"""What bash makes of each command, in place of running it."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_every_command_is_right(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    script = SAY + "\n".join(COMMANDS)
    said = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == script.count("python ") and said[1] == "my_problems.py"
    exec(compile(FILES["my_problems.py"], "my_problems.py", "exec"), {})
    for command in said:
        _, program, *arguments = [*command.split(), "", ""]
        arguments = [argument for argument in arguments if argument]
        if program == "capo_ray.launch":
            assert launch(compose([*arguments, "dry_run=true"])) == 0
            assert "placement of " in (shown := capsys.readouterr().out)
            assert ("(the first of problems.jsonl)\n" in shown) == ("data.path=problems.jsonl" in arguments)
        elif program == "capo_ray.data":
            assert data_check.main(arguments) == 0
            assert "rows       300, usable 300" in capsys.readouterr().out
        else:  # what wants the run that was not made
            assert command in ("my_problems.py", "-m capo_ray.view first", "-m capo_ray.revote second process_weight=1")


def test_the_critic_flags_what_is_wrong(here: Path) -> None:
    critic: CriticEngine = importlib.import_module("my_checker").Checker()
    steps = ["15 + 9 = 24.", "24 - 3 = 22.", "The answer is \\boxed{22}."]
    asked = [{"role": "user", "content": f"Problem: Start with 15.\n{wrap(steps)}"}]
    replies = asyncio.run(critic.complete(asked, Sampling(max_tokens=9), n=2, seed=0))
    assert [parse(reply.text, len(steps)).wrong_steps for reply in replies.completions] == [(1,), (1,)]


def test_the_rules_want_a_short_way_too(here: Path) -> None:
    task: Task = importlib.import_module("my_rules").TASK
    prompt = Prompt(id="a", question="?", token_ids=(0,), answer="7")
    boxed = "so \\boxed{7}."
    said = {boxed: "correct", "so \\boxed{8}.": "wrong", "7": "wrong", "a\n\nb\n\nc\n\nd\n\n" + boxed: "wrong"}
    assert {response: asyncio.run(task.verify(prompt, response)) for response in said} == said


REALLY = """
python() {
    if [ "$*" != "-m capo_ray.view first" ]; then
        echo "> $*"
        "$PYTHON" "$@"
        return
    fi
    "$PYTHON" "$@" port="$PORT" &
    ask="import urllib.request as web; web.urlopen('http://127.0.0.1:$PORT/', timeout=5).read()"
    for _ in $(seq 120); do
        "$PYTHON" -c "$ask" 2> wait.txt && break
        sleep 1
    done
    kill "$!"
    wait "$!" || [ $? = 130 ]
}
"""
"""The viewer is asked for a page and ended; all else is what the page says."""


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    orphans, folder = Orphans(), folder_of(uuid.uuid4().hex)
    environment = {"TMPDIR": str(folder), "PYTHON": sys.executable, "PORT": str(free_port())}
    done = subprocess.run(
        ["bash", "-euc", REALLY + "\n".join(COMMANDS)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
        check=False,
    )
    print(done.stdout)
    left = left_behind(orphans, folder)
    assert done.returncode == 0
    assert left == []
    for name in ("first", "second"):
        steps = steps_in(tmp_path / name)
        assert len(steps) == 10
        assert [folder.name for folder in (tmp_path / name / "checkpoints").glob("step_*")] == ["step_000010"]
        assert (tmp_path / name / "policy" / "model.safetensors").is_file()
        assert all(step["critic/valid_share"] > 0.9 for step in steps)
