"""Whatever stands in a run's directory, the viewer shows what is sound of it and says the rest, and revote ends in one
line. Nothing in it is run, and nothing that it writes is markup."""

import json
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.mutate import ODD, odd_bytes, odd_json, seeds
from view_run import write_run

from capo_ray.revote import __main__ as revote
from capo_ray.view import markup
from capo_ray.view.choose import Filter, choose, draws, most_flagged
from capo_ray.view.curves import charts
from capo_ray.view.viewer import Viewer

TAGS = {"a", "b", "code", "details", "div", "h3", "i", "pre", "span", "summary", "table", "td", "th", "tr"}
ATTRIBUTES = {"class", "href", "id", "title", "style", "data-many", "data-t", "open"}


class Markup(HTMLParser):
    """Collects what is neither text nor of our own making."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        links = [value for name, value in attrs if name == "href" and not (value or "").startswith(("/", "#"))]
        if tag not in TAGS or names - ATTRIBUTES or links:
            self.foreign.append(f"{tag} {names} {links}")


def pages(viewer: Viewer) -> list[str]:
    """What every page would show."""
    viewer.look(60)
    viewer.status(), viewer.reading()
    json.dumps([viewer.metrics.names(), charts(viewer.metrics)])
    entries = viewer.index.entries
    responses = viewer.responses(entries)
    made = [markup.flagged_table(most_flagged(viewer.index))]
    choose(viewer.index, Filter(text="is", tokens="1-99", truth="missed"))
    for entry in viewer.index.entries:
        made += [markup.draws_table(draws(viewer.index.entries, entry.problem))]
    for response in responses:
        made += [markup.problem_box(response), markup.verdict_box(response), markup.critiques(response)]
        for credit in get_args(markup.Credit):
            limit = markup.limit_of(responses, credit)
            made += [markup.list_row(response, credit, limit), markup.steps_grid(response, credit, limit)]
    return made


def check(run_dir: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Markup()
    for text in pages(viewer := Viewer(run_dir)):
        parser.feed(text)
    assert not parser.foreign, (seed, parser.foreign)
    assert len(viewer.problem) < 2000, seed
    code = revote.main([str(run_dir), "vote=union"])
    said = capsys.readouterr()
    assert code in (0, 2) and (code == 0 or len(said.err.splitlines()) == 1), (seed, said.err)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "sound", steps=2)


@pytest.fixture(scope="module")
def sampled(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as the samples of a run without a ledger."""
    run_dir = tmp_path_factory.mktemp("run") / "sampled"
    (run_dir / "samples").mkdir(parents=True)
    viewer = Viewer(sound)
    viewer.look(60)
    with (run_dir / "samples" / "000001-0.jsonl").open("w") as file:
        for response in viewer.responses(viewer.index.entries[:4]):
            file.write(json.dumps(_sample(response)) + "\n")
    shutil.copy(run_dir / "samples" / "000001-0.jsonl", run_dir / "samples" / "000002-0.jsonl")
    return run_dir


def _sample(response: Any) -> dict[str, Any]:
    entry = response.entry
    steps = zip(response.chars, response.tokens, strict=True)
    return {
        "step": entry.step, "prompt_id": entry.prompt_id, "index": entry.index, "answer": entry.answer,
        "finish": entry.finish, "versions": [entry.version], "question": response.question, "gold": response.gold,
        "solution": response.solution, "response": response.text, "char_ends": response.char_ends,
        "steps": [{"start": a, "end": b, "tokens": list(tokens)} for (a, b), tokens in steps],
        "critiques": [
            {"text": c.text, "outcome": c.outcome, "wrong_steps": c.wrong_steps, "critic": c.critic}
            for c in response.critiques
        ],
        "token_rewards": response.rewards, "advantages": response.advantages, "votes": entry.counts,
        "wrong_steps": entry.flagged if entry.judged else None, "steps_right": entry.steps_right,
        "extracted": response.extracted, "reason": response.reason,
    }  # fmt: skip


def test_the_sound_ones(sound: Path, sampled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_dir, count in ((sound, 12), (sampled, 8)):
        viewer = Viewer(run_dir)
        assert len([text for text in pages(viewer) if text]) > 5 * count and not viewer.problem
    check(sound, -1, capsys)


@pytest.mark.parametrize("kind", ["responses", "critiques"])
def test_a_broken_ledger(kind: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in seeds(40):
        run_dir = tmp_path / str(seed)
        shutil.copytree(sound, run_dir)
        path = run_dir / kind / "000002-0.parquet"
        if seed % 4:
            _break_table(path, seed)
        else:
            path.write_bytes(odd_bytes(path.read_bytes(), seed))
        check(run_dir, seed, capsys)
        assert {entry.step for entry in _entries(run_dir)} >= {1}, seed
        shutil.rmtree(run_dir)


def _entries(run_dir: Path) -> list[Any]:
    viewer = Viewer(run_dir)
    viewer.look(60)
    return viewer.index.entries


def _break_table(path: Path, seed: int) -> None:
    """A column gone, of another kind or with odd values; metadata that is odd."""
    chance = random.Random(seed)
    table = pq.read_table(path)
    what = chance.random()
    if what < 0.2:
        odd = [None, {}, {b"scheme": b""}, {b"scheme": json.dumps(chance.choice(ODD)).encode()}]
        scheme = json.dumps(odd_json(json.loads(table.schema.metadata[b"scheme"]), seed)).encode()
        pq.write_table(
            table.replace_schema_metadata(chance.choice([*odd, {b"scheme": scheme}, {b"scheme": scheme}])), path
        )
        return
    at = chance.randrange(table.num_columns)
    name = table.schema.field(at).name
    if what < 0.3:
        pq.write_table(table.drop_columns([name]), path)
        return
    rows = table.column(at).to_pylist()
    values = odd_json(rows, seed)
    try:
        column = pa.array(values, table.schema.field(at).type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        value = chance.choice([None, 1, 2**31 - 1, -1, "x", 1.5, float("nan"), True, b"\xff", [1], [[0, 9]], [[3, 1]]])
        column = pa.array([value] * table.num_rows)
    if len(column) == table.num_rows:
        pq.write_table(table.set_column(at, name, column), path)


def test_broken_samples(sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in seeds(60):
        run_dir = tmp_path / str(seed)
        shutil.copytree(sampled, run_dir)
        path = run_dir / "samples" / "000002-0.jsonl"
        lines = path.read_bytes().splitlines()
        if seed % 4:
            made = json.dumps(odd_json(json.loads(lines[1]), seed)).encode("utf-8", errors="surrogatepass")
            path.write_bytes(b"\n".join([lines[0], made, *lines[2:]]) + b"\n")
        else:
            path.write_bytes(odd_bytes(path.read_bytes(), seed))
        check(run_dir, seed, capsys)
        assert len(_entries(run_dir)) in (4, 5, 6, 7, 8, 12, 16), seed
        shutil.rmtree(run_dir)


def test_what_a_sample_says_is_text(sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of markup in the place of every text of a response."""
    evil = "x\"'><img src=x onerror=alert(1)></script><script>alert(1)</script>"
    line = json.loads((sampled / "samples" / "000002-0.jsonl").read_text().splitlines()[1])

    def marked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: marked(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [marked(one, key) for one in value]
        return evil if isinstance(value, str) and key != "response" else value

    made = marked(line) | {"response": evil.ljust(len(line["response"]))[: len(line["response"])], "finish": "stop"}
    (tmp_path / "samples").mkdir()
    for number, outcome in enumerate((evil, "ok"), start=1):
        made["critiques"][0]["outcome"] = outcome
        (tmp_path / "samples" / f"00000{number}-0.jsonl").write_text(json.dumps({**made, "step": number}) + "\n")
    check(tmp_path, 0, capsys)
    assert len(_entries(tmp_path)) == 2


@pytest.mark.parametrize("file", ["metrics.jsonl", "config.yaml"])
def test_broken_metrics_and_configuration(
    file: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(sound, run_dir)
    path = run_dir / file
    data = path.read_bytes()
    for seed in seeds(60):
        if seed % 3 and file == "metrics.jsonl":
            made = json.dumps(odd_json(json.loads(data.splitlines()[0]), seed)).encode("utf-8", errors="surrogatepass")
            path.write_bytes(data + made + b"\n")
        elif seed % 3:
            path.write_bytes(json.dumps(odd_json({"steps": 3, "critic": {"n": 1}}, seed)).encode())
        else:
            path.write_bytes(odd_bytes(data, seed))
        viewer = Viewer(run_dir)
        viewer.look(60)
        assert len(viewer.index.entries) == 12, seed
        viewer.status(), json.dumps([viewer.metrics.names(), charts(viewer.metrics), viewer.problem])
