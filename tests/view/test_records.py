"""What is shown of a run is what was recorded and what training did with it."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from view_run import SCHEME, ok, prompt, write_run, write_step

from capo_ray.cluster.aggregator import Aggregator, AggregatorParts
from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.steps import delimiter, steps_of
from capo_ray.records.ledger import Ledger, read
from capo_ray.types import Sampling
from capo_ray.view.choose import verdict_of
from capo_ray.view.index import Index, NoRun, check_run
from capo_ray.view.sources import Samples
from capo_ray.view.viewer import Viewer


def index_of(run_dir: Path) -> Index:
    index = Index(run_dir)
    while index.refresh():
        pass
    return index


def test_an_entry_has_the_vote_and_the_doubts(tmp_path: Path) -> None:
    index = index_of(write_run(tmp_path, steps=1))
    by_key = {(entry.problem, entry.index): entry for entry in index.entries}
    assert len(by_key) == 6
    right, slip, split, nobody = (by_key["two", number] for number in range(4))
    assert (right.flagged, right.disagree, right.num_failed, right.steps_right) == ((), False, 0, (True, True))
    assert (slip.flagged, slip.counts, slip.num_valid, slip.num_failed) == ((1,), (0, 2, 0), 2, 1)
    assert (split.flagged, split.disagree, split.num_tokens) == ((), True, 6)
    assert (nobody.num_valid, nobody.num_failed, nobody.answer, nobody.steps_right) == (0, 1, "unverifiable", None)


def test_too_few_valid_critiques_flag_nothing_and_clear_nobody(tmp_path: Path) -> None:
    """As in training: with 3 needed, the two that flag a step, or none, leave the response unjudged."""
    write_step(tmp_path, 0, Scheme(vote="majority", min_valid_critiques=3))
    entries = [entry for entry in index_of(tmp_path).entries if entry.problem == "two"]
    assert [verdict_of(entry) for entry in sorted(entries, key=lambda entry: entry.index)] == [
        *("unjudged", "unjudged", "clean", "unjudged"),
    ]
    assert {entry.flagged for entry in entries} == {()} and entries[1].counts == (0, 2, 0)


def test_credit_is_what_training_gave(tmp_path: Path) -> None:
    index = index_of(write_run(tmp_path))
    ((scheme, groups), _) = read(tmp_path)
    score = score_group(groups[0].members, scheme.scheme)
    for at in range(4):
        entry = index.find(1, "two@0", at)
        assert entry
        response = index.source.response(entry)
        assert (response.rewards, response.advantages) == (score.members[at].token_rewards, score.advantages[at])
        assert (response.question, response.gold, response.solution) == ("What is two?", "4", "Add the two: 4.")
        assert response.char_ends == groups[0].members[at].rollout.char_ends and response.vote == "majority"
    assert index.find(1, "two@0", 9) is None


def test_credit_over_a_batch_is_standardised_over_the_whole_step(tmp_path: Path) -> None:
    """Over both shards of the step; what is shown has mean 0 and spread 1 over its tokens."""
    for shard, name in enumerate(("two", "three")):
        ledger = Ledger(tmp_path, shard=shard, scheme=Scheme(advantage="capo_batch"), sampling=Sampling(max_tokens=9))
        made = prompt(name, 0)
        rollouts = [(index, piece) for index, piece in enumerate(("so 4", f"so {shard}"))]
        members = []
        for index, piece in rollouts:
            from responses import response

            rollout = response(piece, index=index, prompt_id=made.id)
            steps = steps_of(rollout.text, rollout.char_ends)
            answer = "wrong" if index else "correct"
            members.append(Member(rollout=rollout, steps=steps, critiques=(ok(0) if shard else ok(),), answer=answer))
        ledger.add(0, made, members)
        ledger.write(0)
    index = index_of(tmp_path)
    assert index.num_files == 2
    values = [value for entry in index.entries for value in index.source.response(entry).advantages or ()]
    assert sum(values) == pytest.approx(0, abs=1e-6)
    assert sum(value * value for value in values) / len(values) == pytest.approx(1, abs=1e-4)


def test_the_newest_is_read_first_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(write_run(tmp_path, steps=3))
    seen: list[str] = []
    entries = type(index.source).entries
    monkeypatch.setattr(type(index.source), "entries", lambda self, name: seen.append(name) or entries(self, name))
    assert index.refresh(seconds=0) and (index.num_read, index.num_files) == (1, 3)
    assert {entry.step for entry in index.entries} == {3}
    while index.refresh(seconds=0):
        pass
    assert seen == ["000003-0.parquet", "000002-0.parquet", "000001-0.parquet"]
    assert [entry.step for entry in index.entries] == sorted((entry.step for entry in index.entries), reverse=True)
    write_step(tmp_path, 4)
    assert index.refresh() and seen[3:] == ["000004-0.parquet"] and not index.refresh()


def test_a_run_that_goes_back_is_followed(tmp_path: Path) -> None:
    index = index_of(write_run(tmp_path))
    (tmp_path / "responses" / "000002-0.parquet").unlink()
    assert index.refresh() and {entry.step for entry in index.entries} == {1}


def test_a_run_without_a_ledger_shows_its_samples(tmp_path: Path) -> None:
    """The lines are those that an aggregator writes."""
    from responses import response

    async def right(*_: object) -> str:
        return "correct"

    parts = AggregatorParts(
        scheme=Scheme(advantage="grpo"), between=delimiter(), verify=right, critics=None, reference="answer",
        find_truth=None, samples=tmp_path / "samples",
    )  # fmt: skip
    aggregator = Aggregator(parts, shard=0, put=lambda payload: payload)
    made = prompt("two", 0)

    import asyncio

    (tmp_path / "config.yaml").touch()
    index = Index(tmp_path)
    assert not index.refresh() and index.entries == []
    for number, piece in enumerate(("so\n\n", "or")):
        asyncio.run(aggregator.score(made, response(piece, "4", index=number, prompt_id=made.id), 0, 1))
    aggregator.close(made, 1, num_samples=2)
    aggregator.write_samples(1)
    assert index.refresh() and isinstance(index.source, Samples)
    entry = index.entries[0]
    shown = index.source.response(entry)
    assert (shown.text, shown.char_ends, shown.solution) == ("so\n\n4", (4, 5, 5), "Add the two: 4.")
    assert shown.chars == ((0, 4), (4, 5)) and shown.critiques == () and shown.rewards == (2, 2, 2)
    assert index.source.found("000001-0.jsonl", "WHAT is") == {0, 1}
    assert index.source.found("000001-0.jsonl", "or") == {1}


def test_texts_are_searched_whatever_their_case(tmp_path: Path) -> None:
    source = index_of(write_run(tmp_path)).source
    assert source.found("000001-0.parquet", "IS 5") == {1, 2}
    assert source.found("000001-0.parquet", "is evil") == {4, 5}
    assert source.found("000001-0.parquet", ".*") == set()


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match=re.escape(f"{tmp_path}/none is not a directory: name the run_dir of a run")):
        check_run(tmp_path / "none")
    with pytest.raises(NoRun, match=re.escape(f"{tmp_path} holds no run (no config.yaml, metrics.jsonl, responses/")):
        check_run(tmp_path)
    (tmp_path / "config.yaml").touch()
    check_run(tmp_path)


def test_a_broken_file_hides_itself_alone_until_it_is_whole(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "responses" / "000002-0.parquet"
    whole = path.read_bytes()
    path.write_text("not this")
    viewer = Viewer(tmp_path)
    assert viewer.look(60) and not viewer.look(60)
    assert {entry.step for entry in viewer.index.entries} == {1}
    assert viewer.problem.startswith(f"1 of 2 files are not shown: {path} cannot be read: ")
    path.write_bytes(whole)
    assert viewer.look(60)
    assert {entry.step for entry in viewer.index.entries} == {1, 2} and not viewer.problem


def test_a_file_that_breaks_later_is_hidden_when_it_is_opened(tmp_path: Path) -> None:
    viewer = Viewer(write_run(tmp_path))
    viewer.look(60)
    entries = list(viewer.index.entries)
    (tmp_path / "critiques" / "000002-0.parquet").write_text("not this")
    assert [response.entry.step for response in viewer.responses(entries)] == [1] * 6
    assert {entry.step for entry in viewer.index.entries} == {1} and "1 of 2 files are not shown" in viewer.problem


def test_code_that_the_run_names_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_step(run_dir, 1, Scheme(vote="evil_viewed:vote"))
    (tmp_path / "evil_viewed.py").write_text("open('ran', 'w').close()\ndef vote(count, valid):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    viewer = Viewer(run_dir)
    viewer.look(60)
    responses = viewer.responses(viewer.index.entries)
    assert len(responses) == 6 and {response.vote for response in responses} == {"majority"}
    assert viewer.problem.startswith("evil_viewed:vote is code of the run's author, which is not run (trust=true")
    assert not (tmp_path / "ran").exists()
    trusting = Viewer(run_dir, trust=True)
    trusting.look(60)
    assert not trusting.problem and (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", [b"{", b"5", b"null", b'"x"', b'{"a": 1}', b'{"step": null}', b"\xff", b"[" * 99_999])
def test_a_broken_line_of_the_metrics_is_left_out(tmp_path: Path, line: bytes) -> None:
    path = write_run(tmp_path) / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second)
    viewer = Viewer(tmp_path)
    viewer.look(60)
    assert [line["step"] for line in viewer.metrics.lines] == [1, 2] and len(viewer.index.entries) == 12
    assert viewer.problem.startswith(f"line 2 of {path} (1 of 2 lines) is no training step's numbers: ")
    assert viewer.status().startswith("training step 2 of 3")


@pytest.mark.parametrize("text", [b"[", b"5", b"steps: [", b"\xff\xfe", b"!!python/object/apply:os.system [id]"])
def test_a_broken_configuration_is_said(tmp_path: Path, text: bytes) -> None:
    path = write_run(tmp_path) / "config.yaml"
    path.write_bytes(text)
    viewer = Viewer(tmp_path)
    viewer.look(60)
    assert viewer.status().startswith("training step 2") and len(viewer.index.entries) == 12
    assert viewer.problem.startswith(f"{path} cannot be read: ")


def test_a_file_without_a_column_is_named(tmp_path: Path) -> None:
    """As from an older version."""
    write_run(tmp_path)
    path = tmp_path / "responses" / "000002-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["steps_right"]), path)
    index = Index(tmp_path)
    index.refresh(60)
    assert str(index.broken["000002-0.parquet"]).startswith(f"{path} cannot be read: it has no steps_right")


def test_the_schemes_of_tests_and_ledger_agree(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert next(read(tmp_path))[0].scheme == SCHEME
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_a_run_whose_steps_count_from_0_is_told(tmp_path: Path) -> None:
    """As an older version wrote it."""
    path = write_run(tmp_path) / "metrics.jsonl"
    path.write_text('{"step": 0, "evaluation/x": 1}\n{"step": 0, "time": 1, "x": 1}\n')
    viewer = Viewer(tmp_path)
    viewer.look(60)
    assert viewer.problem == "an older version wrote this run: its training steps count from 0"
