"""The whole benchmark over HTTP against a critic whose every answer is known; resumed, and replayed without it."""

import asyncio
import gzip
import json
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from asked import asked_with
from openai_server import chat, serving_in_thread

from capo_ray.credit.critique import render_reply, unwrap
from capo_ray.critic_bench.__main__ import main
from capo_ray.critic_bench.engines import quiet
from capo_ray.critic_bench.replies import ask, read_replies
from capo_ray.critics.labelled import Item, arithmetic, processbench
from capo_ray.critics.service import Critics
from capo_ray.data.problem import DataError
from capo_ray.engines.protocols import Completion, Message, Replies
from capo_ray.types import Metrics, Sampling

K = 8
Labels = dict[tuple[str, ...], int]


def scripted(labels: Labels, asked: list[str]) -> AbstractContextManager[str]:
    """A critic that knows the labels. Of its eight critiques of a response whose first error is step L

    number 0 says L, 1 nothing, 2 and 3 cannot be read, 4 to 7 say the first step and L; where there is no error 0 to 5
    say nothing and 6 and 7 say the first step.
    """

    async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
        steps = tuple(unwrap(body["messages"][1]["content"]))
        label = labels[steps]
        asked.append(steps[0])
        none: list[str] = [render_reply([])]
        if label < 0:
            return chat([*none * 6, *[render_reply([0])] * 2], usage={"prompt_tokens": 9, "completion_tokens": 80})
        right, both = render_reply([label]), render_reply({0, label})
        return chat([right, *none, "?", "?", *[both] * 4], usage={"prompt_tokens": 9, "completion_tokens": 80})

    return serving_in_thread(answer)


def bench(endpoint: str, path: Path, out: Path, *more: str) -> int:
    critic = ("critic=http", f"critic.endpoints=[{endpoint}]", "critic.served_model=judge")
    return main([*critic, "data=processbench", f"path={path}", f"k={K}", f"out={out}", *more])


def test_processbench_math_to_four_digits(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = test_data / "processbench" / "math.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(source.read_bytes()).splitlines()]
    labels = {tuple(record["steps"]): record["label"] for record in records}
    asked: list[str] = []
    with scripted(labels, asked) as endpoint:
        assert bench(endpoint, source, tmp_path / "out") == 0
    table = capsys.readouterr().out
    assert len(asked) == len(records) == 1000

    # By hand. `clean`: no error; `at_once`: the first step is the first error; `late`: a later one is.
    clean = sum(record["label"] == -1 for record in records)
    at_once = sum(record["label"] == 0 for record in records)
    late = 1000 - clean - at_once
    wrong = at_once + late
    expected = {
        # critique 0 alone is right throughout
        ("intersection", 1): (1.0, 1.0, 1.0, 1.0, 1.0),
        # 1 says nothing: no step is flagged by both, every one by half
        ("intersection", 2): (0.0, 0.0, 1.0, None, 0.0),
        ("majority", 2): (1.0, 1.0, 1.0, 1.0, 1.0),
        ("strict_majority", 2): (0.0, 0.0, 1.0, None, 0.0),
        ("union", 4): (1.0, 1.0, 1.0, 1.0, 1.0),  # 2 and 3 do not vote
        ("average", 2): (1.0, 1.0, 1.0, 1.0, 1.0),
        # of six valid ones five say L and four the first step: both are flagged, so a late error is not found
        ("strict_majority", 8): (
            2 * (at_once / wrong) / (at_once / wrong + 1),
            at_once / wrong,
            1.0,
            wrong / (wrong + late),
            1.0,
        ),
        # and where there is none, two of eight
        ("union", 8): (0.0, at_once / wrong, 0.0, wrong / (wrong + late + clean), 1.0),
        ("intersection", 8): (0.0, 0.0, 1.0, None, 0.0),
    }
    rows = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("│|").split("│")]
        if len(cells) == 10 and cells[1].isdigit():
            rows[cells[0], int(cells[1])] = cells[2:7]
    assert len(rows) == 5 * 4
    for row, values in expected.items():
        assert rows[row] == ["-" if value is None else f"{value:.4f}" for value in values], row
    invalid = 2 * wrong / 8000
    assert f"invalid_share: {invalid:.4f}" in table and "tokens_per_response: 80" in table
    assert "advice: reward.vote=" in table and "critic.critiques=1: F1 1.0000, the highest" in table

    figures = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert figures["summary"]["responses_per_s"] > 0
    assert (tmp_path / "out" / "precision_recall.svg").read_text().endswith("</svg>\n")

    assert main([f"replay={tmp_path / 'out'}", f"out={tmp_path / 'again'}"]) == 0
    assert json.loads((tmp_path / "again" / "scores.json").read_text()) == figures
    assert capsys.readouterr().out == table


def small(folder: Path) -> tuple[Path, Labels]:
    records = [
        {"id": f"r{n}", "problem": f"1 + {n}?", "steps": [f"step {n}", "so it is"], "label": n % 3 - 1}
        for n in range(30)
    ]
    path = folder / "small.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, {tuple(record["steps"]): record["label"] for record in records}  # type: ignore[misc, arg-type]


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that was cut off is judged again, whole ones are not; the figures are those of an undisturbed run."""
    path, labels = small(tmp_path)
    asked: list[str] = []
    with scripted(labels, asked) as endpoint:
        assert bench(endpoint, path, tmp_path / "whole") == 0
        assert bench(endpoint, path, tmp_path / "out") == 0
        replies = tmp_path / "out" / "replies.jsonl"
        lines = replies.read_text().splitlines(keepends=True)
        replies.write_text("".join(lines[:10]) + lines[10][:-30])
        asked.clear()
        assert bench(endpoint, path, tmp_path / "out") == 0
        assert len(asked) == 20
        assert bench(endpoint, path, tmp_path / "out") == 0
        assert len(asked) == 20
        capsys.readouterr()
        assert bench(endpoint, path, tmp_path / "out", "critic.temperature=0.1") == 2
        assert "holds replies of another benchmark (temperature 0.7, now 0.1)" in capsys.readouterr().err
        path.write_text(path.read_text().replace("so it is", "so it was"))
        assert bench(endpoint, path, tmp_path / "out") == 2
    assert "holds replies of another benchmark (content " in capsys.readouterr().err
    scores = [json.loads((tmp_path / name / "scores.json").read_text())["scores"] for name in ("whole", "out")]
    assert scores[0] == scores[1]


def test_what_failed_is_asked_for_again(tmp_path: Path) -> None:
    """And only that; every response that is there moves the bar."""

    class Blips:
        name, down = "a", True

        async def metrics(self) -> Metrics:
            return {}

        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, n: int, seed: int) -> Replies:
            asked.append(seed)
            if self.down and len(asked) > 2:
                raise ConnectionError("gone")
            completion = Completion(text=render_reply([0]), truncated=False, num_tokens=1)
            return Replies(completions=(completion,) * n, prompt_tokens=1, cached_tokens=0)

    items = [Item(id=str(n), question="?", steps=(f"step {n}",), labels=(True,)) for n in range(5)]
    engine = Blips()
    path, asked, bar = tmp_path / "replies.jsonl", list[int](), list[int]()

    def session() -> list[str]:
        bar.clear()
        critics = Critics([engine], asked_with(attempts=1, break_after=100))
        replies = asyncio.run(ask(items, critics, path, reference="none", seed=0, progress=lambda: bar.append(1)))
        assert len(bar) == len(replies) == 5
        assert sorted(reply.line() for reply in read_replies(path)) == sorted(reply.line() for reply in replies)
        return [reply.critiques[0].outcome for reply in replies]

    assert session() == ["ok"] * 2 + ["engine_error"] * 3
    engine.down = False
    assert session() == ["ok"] * 5
    assert len(asked) == 5 + 3
    assert session() == ["ok"] * 5 and len(asked) == 8


def test_the_tiny_world_from_a_file(tmp_path: Path) -> None:
    lines = [
        ("Start with 17. Add 5, then subtract 8.", "17 + 5 = 23.\n\n23 - 8 = 15.\n\nThe answer is \\boxed{15}."),
        ("Start with 17. Add 5, then subtract 8.", "17 + 5 = 22.\n\n22 - 8 = 14.\n\nThe answer is \\boxed{14}."),
    ]
    items = arithmetic(lines)
    assert [item.labels for item in items] == [(True, False, False), (False, False, False)]
    assert items[0].steps == ("17 + 5 = 23.", "23 - 8 = 15.", "The answer is \\boxed{15}.")
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps({"question": q, "response": r}) + "\n" for q, r in lines))
    asked: list[str] = []
    with scripted({items[0].steps: 0, items[1].steps: -1}, asked) as endpoint:
        critic = ("critic=http", f"critic.endpoints=[{endpoint}]", "critic.served_model=judge")
        assert main([*critic, "data=arithmetic", f"path={path}", "k=8", f"out={tmp_path / 'out'}"]) == 0
    figures = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert figures["summary"]["wrong_step_share"] == 1 / 6
    assert figures["advice"].startswith("reward.vote=")

    assert main(["critic=truth", "data=arithmetic", f"path={path}", "k=2", f"out={tmp_path / 'truth'}"]) == 0
    figures = json.loads((tmp_path / "truth" / "scores.json").read_text())
    assert all(row["f1"] == row["precision"] == row["recall"] == 1 for row in figures["scores"])


def test_items_are_what_json_makes_of_them() -> None:
    item = Item(id="a", question="?", steps=("x", "y"), labels=(True, None))
    assert Item.of(json.loads(json.dumps(asdict(item)))) == item


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "path: there is no file"),
        ("", "is empty"),
        ("{", "line 1: not JSON"),
        ("[]", "line 1: must be a JSON object"),
        ('{"problem": "p", "steps": [], "label": -1}', "line 1: `steps` must be a list of texts"),
        (
            '{"problem": "p", "steps": ["a"], "label": 1}',
            "`label` must be the first wrong step, from 0, or -1 for none",
        ),
        ('{"steps": ["a"], "label": 0}', "`problem` must be a text"),
        ('{"id": 1, "problem": "p", "steps": ["a"], "label": 0}\n' * 2, "has the id '1' more than once"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        processbench(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data=gsm8k out=o", "data: must be one of processbench, arithmetic, got 'gsm8k'"),
        ("data=processbench out=o", "path: must name a ProcessBench file"),
        ("data=arithmetic", "out: must name a folder"),
        ("data=arithmetic out=o k=0", "k: must be at least 1, got '0'"),
        ("replay=none.jsonl", "replay: there is no file none.jsonl"),
        ("replay=none.jsonl critic=tiny", "replay: it takes no other key than `out`"),
        ("data=arithmetic out=o critic=nope", "critic: there is no 'nope' in conf/critic; there are"),
        ("data=arithmetic out=o critic.nope=1", "critic.nope: no such key"),
    ],
)
def test_bad_arguments(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_an_engine_writes_goes_to_a_file_and_is_shown_when_it_does_not_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def start() -> None:
        subprocess.run(["sh", "-c", "echo noise of a library >&2"], check=True)

    log = tmp_path / "work" / "engine.log"
    with quiet(log):
        start()
    assert capfd.readouterr().err == "" and log.read_text() == "noise of a library\n"
    with pytest.raises(ValueError), quiet(log):
        subprocess.run(["sh", "-c", "echo why it failed >&2"], check=True)
        raise ValueError
    assert capfd.readouterr().err == "why it failed\n"
